import csv
import json
import shutil
from pathlib import Path

import pytest

from classification.data.layouts import find_layout
from classification.data.tables import Columns
from mobile_former.errors import InputError
from tests.classification.data.conftest import CLASSES, data_of


def read(root, split="train", columns=None):
    """Return the classes of the images of a split by their path below the data folder."""
    labelled = find_layout(root, columns).splits[split]()
    folder = root if root.is_dir() else root.parent
    names = [path.relative_to(folder).as_posix() for path in labelled.paths]
    return dict(zip(names, labelled.names, strict=True))


def write_table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


@pytest.fixture
def flat(folder):
    """Nine images without class folders, in images/."""
    (folder / "images").mkdir()
    for path in sorted((folder / "train").rglob("*.jpg")):
        path.rename(folder / "images" / f"{path.parent.name} {path.name}")
    for split in ("train", "val"):
        shutil.rmtree(folder / split)
    return folder


@pytest.fixture
def rows(flat):
    return [(path.name, path.name.split()[0]) for path in sorted((flat / "images").iterdir())]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "valid", "test"), ("Train", "Validation", "Testing"), ("TRAINING", "VAL", "TEST")],
)
def test_folders_of_splits_have_many_names(folder, train, val, test):
    shutil.copytree(folder / "val", folder / "more" / test)
    (folder / "train").rename(folder / "t")
    (folder / "t").rename(folder / train)
    (folder / "val").rename(folder / "v")
    (folder / "v").rename(folder / val)
    (folder / "more" / test).rename(folder / test)
    shutil.rmtree(folder / "more")
    data = data_of(folder)
    data.setup("fit")
    assert (data.class_names, len(data.train_set), len(data.val_set)) == (list(CLASSES), 9, 6)
    data.setup("test")
    assert (data.test_split, len(data.test_set)) == ("test", 6)
    assert data.notes() == ["layout folders of classes"]


def test_the_folders_of_splits_are_not_taken_for_classes(flat):
    for split in ("train", "valid"):  # as Roboflow exports images with boxes
        shutil.copytree(flat / "images", flat / split)
    shutil.rmtree(flat / "images")
    with pytest.raises(FileNotFoundError, match=r"no layout that is recognised\. Looked for DIR/train/<class>"):
        find_layout(flat)


def test_images_of_a_single_class_are_an_error(flat):
    with pytest.raises(InputError, match=r"read as one folder of classes\) has images of only one class, 'images'"):
        data_of(flat).setup("fit")


def test_one_folder_of_classes_is_divided(folder, tmp_path):
    root = (folder / "train").rename(folder.parent / "classes")
    data = data_of(root, split_seed=5)
    data.keep_split(tmp_path / "split.json", None)
    data.setup("fit")
    assert data.notes() == [
        "layout one folder of classes",
        "split  7 training and 2 validation images: 0.2 of the images, stratified, seed 5",
    ]
    train, val = (set(own.source.paths) for own in (data.train_set, data.val_set))
    assert not train & val
    assert len(train | val) == 9
    written = json.loads((tmp_path / "split.json").read_text())
    assert {root / name for name in written["val"]} == val
    resumed = data_of(root, split_seed=99)
    resumed.keep_split(None, tmp_path / "split.json")
    resumed.setup("fit")
    assert set(resumed.val_set.source.paths) == val
    other = data_of(root, split_seed=99)
    other.keep_split(None, None, only_known=True)
    other.setup("validate")
    assert len(other.val_set) == 9


def test_the_folder_of_an_unpacked_archive_is_found(folder):
    assert find_layout(folder.parent).splits.keys() == {"train", "val"}
    only = (folder / "train" / "red").rename(folder.parent.parent / "red")
    shutil.rmtree(folder.parent)
    (folder.parent / "photos").mkdir(parents=True)
    only.rename(folder.parent / "photos" / "red")
    assert set(read(folder).values()) == {"red"}


def test_classes_with_the_name_of_a_split_are_classes(folder):
    root = (folder / "train").rename(folder.parent / "vehicles")
    (root / "red").rename(root / "train")
    assert set(read(root).values()) == {"blue", "green", "train"}


def test_training_without_a_folder_of_validation_images_holds_some_out(folder):
    shutil.rmtree(folder / "val")
    data = data_of(folder)
    data.setup("fit")
    assert len(data.train_set) + len(data.val_set) == 9
    (folder / "groups.csv").write_text(
        "file,group\n" + "".join(f"train/{name}/{n}.jpg,{n}\n" for name in CLASSES for n in range(3))
    )
    data = data_of(folder, val_fraction=0.3)
    data.setup("fit")
    assert len({path.stem for path in data.val_set.source.paths}) == 1
    assert data.split_text.endswith("3 groups kept together")


def test_folds_cover_the_training_images(folder):
    found = []
    for fold in (1, 2, 3):
        data = data_of(folder, folds=3, fold=fold)
        data.setup("fit")
        assert data.val_set.source.labels == [0, 1, 2]
        assert data.split_text.endswith("; the validation images of the data are not used")
        found += data.val_set.source.paths
    assert len(set(found)) == 9
    with pytest.raises(InputError, match=r"--data\.folds 5"):
        data_of(folder, folds=3)
    with pytest.raises(InputError, match=r"not --data\.dataset digits"):
        data_of(folder, dataset="digits", val_fraction=0.1)


def test_a_class_without_images_is_left_out_unless_it_is_asked_for(folder):
    (folder / "train" / "yellow").mkdir()
    (folder / "train" / "yellow" / "notes.txt").write_text("none yet")
    data = data_of(folder)
    assert data.class_names == list(CLASSES)
    data.setup("fit")
    assert data.notes()[1].startswith("empty  no image of 'yellow': left out of the classes")
    assert data_of(folder, keep_empty_classes=True).class_names == [*CLASSES, "yellow"]
    shutil.copytree(folder / "val" / "red", folder / "val" / "yellow")
    assert data_of(folder).class_names == [*CLASSES, "yellow"]


def test_the_same_images_in_both_splits_are_counted(folder, caplog):
    shutil.copy(folder / "train" / "red" / "0.jpg", folder / "val" / "red" / "copy.jpg")
    data_of(folder).setup("fit")
    assert "1 of 7 validation images are also training images" in caplog.text
    assert "val/red/copy.jpg and" in caplog.text


@pytest.mark.parametrize(
    ("header", "suffix"),
    [(("id", "label"), ""), (("Image_ID", "Class"), ".jpg"), (("file", "breed"), ""), (("x", "y"), ".jpg")],
)
def test_a_table_names_files_with_or_without_folder_and_suffix(flat, rows, header, suffix):
    for form in ("{}", "images/{}"):
        written = [(form.format(name.removesuffix(".jpg") + suffix), label) for name, label in rows]
        write_table(flat / "labels.csv", [header, *written])
        assert read(flat) == {f"images/{name}": label for name, label in rows}
        assert read(flat / "labels.csv") == read(flat)


def test_tables_may_have_other_delimiters_no_header_and_numbers_as_labels(flat, rows):
    numbers = {"blue": "0", "green": "2", "red": "10"}
    table = [(f"images/{name}", numbers[label]) for name, label in rows]
    for delimiter, suffix in ((";", ".csv"), ("\t", ".tsv"), (",", ".csv")):
        path = flat / f"train{suffix}"
        write_table(path, table, delimiter)
        labelled = find_layout(flat).splits["train"]()
        assert labelled.classes == ["0", "2", "10"]
        assert labelled.names == [label for _, label in table]
        path.unlink()


def test_a_table_may_have_one_column_for_each_class(flat, rows):
    table = [("image", *CLASSES), *((name, *(f"{int(own == label)}.0" for own in CLASSES)) for name, label in rows)]
    write_table(flat / "truth.csv", table)
    assert set(read(flat).values()) == set(CLASSES)


def test_a_column_of_splits_divides_a_table_and_one_of_groups_keeps_images_together(flat, rows):
    table = [(*row, "train" if n % 3 else "valid", f"g{n // 3}") for n, row in enumerate(rows)]
    write_table(flat / "all.csv", [("path", "label", "split", "person"), *table])
    data = data_of(flat, groups="person")
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set), data.split_text) == (6, 3, "")
    write_table(flat / "all.csv", [("path", "label", "group"), *((*row, f"g{n % 3}") for n, row in enumerate(rows))])
    data = data_of(flat)
    data.setup("fit")
    assert len({path.stem[-1] for path in data.val_set.source.paths}) == 1
    assert "3 groups kept together" in data.split_text
    with pytest.raises(InputError, match="has no column 'person'"):
        data_of(flat, groups="person").setup("fit")


def test_tables_of_splits_and_columns_by_option(flat, rows):
    write_table(flat / "train_labels.csv", [("a", "b", "c"), *((label, name, "x") for name, label in rows[:6])])
    write_table(flat / "val_labels.csv", [("a", "b", "c"), *((label, name, "x") for name, label in rows[6:])])
    write_table(flat / "test.csv", [("b",), *((name,) for name, _ in rows[:2])])
    columns = Columns(image="b", label="a")
    assert find_layout(flat, columns).splits.keys() == {"train", "val"}
    assert len(read(flat, "val", columns)) == 3
    data = data_of(flat, image_column="b", label_column="a")
    assert data.class_names == ["blue", "green"]


@pytest.mark.parametrize("option", ["image", "label"])
def test_an_unknown_column_is_named_with_the_columns_of_the_table(flat, rows, option):
    write_table(flat / "labels.csv", [("path", "label"), *rows])
    message = rf"labels\.csv has no column 'breed' \(--data\.{option}_column\): it has 'path', 'label'"
    for root in (flat, flat / "labels.csv"):
        with pytest.raises(InputError, match=message):
            read(root, columns=Columns(**{option: "breed"}))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("split", [True, False])
def test_metadata_of_hugging_face_is_read(flat, rows, name, split):
    places = {"train": flat / "train", "validation": flat / "validation"} if split else {"": flat / "images"}
    for place in places.values():
        if split:
            shutil.copytree(flat / "images", place)
        if name.endswith("csv"):
            write_table(place / name, [("file_name", "label"), *rows])
        else:
            lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
            (place / name).write_text("\n".join(lines))
    root = flat if split else flat / "images"
    if split:
        shutil.rmtree(flat / "images")
    layout = find_layout(root)
    assert layout.name == f"table ({name})"
    assert layout.splits.keys() == ({"train", "val"} if split else {"train"})
    assert sorted(layout.splits["train"]().names) == sorted(label for _, label in rows)


def test_tables_of_roboflow_are_in_the_folders_of_the_splits(flat, rows):
    for split in ("train", "valid"):
        shutil.copytree(flat / "images", flat / split)
        write_roboflow(flat / split, rows, lambda label: "1, 0" if label == "blue" else "0, 1")
    layout = find_layout(flat)
    assert layout.name == "table (_classes.csv)"
    assert layout.splits.keys() == {"train", "val"}
    assert layout.splits["val"]().names == [label if label == "blue" else "other" for _, label in rows]


def write_roboflow(folder, rows, marks):
    lines = [f"{name}, {marks(label)}" for name, label in rows]
    (folder / "_classes.csv").write_text("\n".join(["filename, blue, other", *lines]))


def test_a_row_of_roboflow_with_several_classes_is_an_error_and_one_without_is_left_out(flat, rows, caplog):
    shutil.copytree(flat / "images", flat / "train")
    write_roboflow(flat / "train", rows, lambda label: "1, 0" if label == "blue" else "0, 0")
    blue = sum(label == "blue" for _, label in rows)
    assert set(read(flat).values()) == {"blue"}
    assert len(read(flat)) == blue
    assert f"rows without a label are left out: {len(rows) - blue}" in caplog.text
    write_roboflow(flat / "train", rows, lambda label: "1, 1" if label == "blue" else "0, 1")
    message = rf"_classes\.csv marks several classes for {blue} of {len(rows)} images, such as blue 0\.jpg, but"
    with pytest.raises(InputError, match=message):
        find_layout(flat)


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("1", "0")])
def test_the_column_is_valid_of_fastai_divides_a_table(flat, rows, yes, no):
    marked = [(name, label, yes if number % 3 == 0 else no) for number, (name, label) in enumerate(rows)]
    write_table(flat / "labels.csv", [("fname", "labels", "is_valid"), *marked])
    for split, own in (("train", no), ("val", yes)):
        names = find_layout(flat).splits[split]().names
        assert names == [label for _, label, mark in marked if mark == own]


def test_rows_without_a_label_are_counted(flat, rows, caplog):
    write_table(flat / "labels.csv", [("path", "label"), *rows[1:], (rows[0][0], "")])
    assert len(read(flat)) == len(rows) - 1
    assert "labels.csv: rows without a label are left out: 1" in caplog.text


def test_faults_of_tables_are_named(flat, rows):
    for gone, more in ((1, ""), (3, ", like 2 other images")):
        lost = [(f"gone{number or ''}.jpg", "red") for number in range(gone)]
        write_table(flat / "labels.csv", [("path", "label"), *rows, *lost])
        message = rf"labels\.csv names the image 'gone\.jpg', which is not in {flat}{more}: restore them, or remove"
        with pytest.raises(FileNotFoundError, match=message):
            read(flat)
    (flat / "copies").mkdir()
    shutil.copy(flat / "images" / rows[0][0], flat / "copies" / rows[0][0])
    write_table(flat / "labels.csv", [("path", "label"), *rows])
    with pytest.raises(InputError, match=rf"the image '{rows[0][0]}', but .* have this name"):
        read(flat)
    write_table(flat / "more.csv", [("path", "label"), *rows])
    with pytest.raises(InputError, match=r"has the tables 'labels\.csv', 'more\.csv': give one"):
        read(flat)
    (flat / "labels.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"labels\.csv cannot be read as a table"):
        read(flat)


def test_an_unknown_layout_is_refused_with_what_was_looked_for_and_what_is_there(flat):
    with pytest.raises(FileNotFoundError) as error:
        find_layout(flat / "images")
    message = str(error.value)
    for part in ("train/<class>", "DIR/<class>", "CSV", "metadata.csv", "'blue 0.jpg'", "--data.image_column"):
        assert part in message
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_layout(Path("gone"))
