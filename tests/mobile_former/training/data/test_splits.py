import numpy as np
import pytest

from mobile_former.errors import InputError
from mobile_former.training.data.splits import (
    HoldOut,
    read_split,
    same_files,
    split_folders,
    split_of,
    stratified_parts,
    write_split,
)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("train2017", "train"), ("trainval", "train"), ("val", "val"),
        ("VALID", "val"), ("validation", "val"), ("test", "test"), ("testing", "test"), ("tests", None),
        ("trains", None), ("dogs", None), ("2017", None),
    ],
)  # fmt: skip
def test_names_stand_for_splits(name, split):
    assert split_of(name) == split


def test_folders_with_the_name_of_a_split_are_found(tmp_path):
    for name in ("Train", "valid", "dogs", "trainval"):
        (tmp_path / name).mkdir()
    (tmp_path / "test").write_text("a file")
    assert split_folders(tmp_path) == {"train": tmp_path / "Train", "val": tmp_path / "valid"}
    (tmp_path / "VALID").mkdir()
    with pytest.raises(InputError, match="has the folders 'VALID' and 'valid': rename one"):
        split_folders(tmp_path)


def one_hot(labels):
    return np.eye(max(labels) + 1, dtype=np.int64)[labels]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_each_class_has_its_share_of_the_held_out_images(fraction):
    counts = one_hot([0] * 100 + [1] * 40 + [2] * 10)
    held = HoldOut(fraction, seed=1).choose(counts)
    assert (counts[held].sum(0) == np.array([100, 40, 10]) * fraction).all()
    assert (held == HoldOut(fraction, seed=1).choose(counts)).all()
    assert (held != HoldOut(fraction, seed=2).choose(counts)).any()


def test_many_small_classes_still_give_the_whole_share():
    counts = one_hot([label for label in range(100) for _ in range(3)])
    held = HoldOut(0.2).choose(counts)
    assert held.sum() == 60
    assert counts[held].sum(0).max() == 1


def test_images_with_several_classes_are_divided_by_their_objects():
    generator = np.random.default_rng(0)
    counts = generator.poisson([5, 1, 0.1], (500, 3))
    held = HoldOut(0.2).choose(counts)
    np.testing.assert_allclose(counts[held].sum(0) / counts.sum(0), 0.2, atol=0.02)
    assert abs(held.mean() - 0.2) < 0.05


def test_folds_are_disjoint_complete_and_equally_large():
    counts = one_hot([0] * 23 + [1] * 17)
    held = np.array([HoldOut(folds=5, fold=fold).choose(counts) for fold in range(1, 6)])
    assert (held.sum(0) == 1).all()
    assert held.sum(1).tolist() == [8] * 5
    for own in held:
        assert (abs(counts[own].sum(0) - np.array([23, 17]) / 5) < 1).all()


def test_groups_are_not_separated():
    generator = np.random.default_rng(0)
    labels, groups = generator.integers(0, 2, 200), generator.integers(0, 25, 200).tolist()
    counts = one_hot(labels.tolist())
    held = HoldOut(0.2).choose(counts, groups)
    assert not {groups[i] for i in np.flatnonzero(held)} & {groups[i] for i in np.flatnonzero(~held)}
    assert 0.1 < held.mean() < 0.3
    alone = HoldOut(0.5).choose(one_hot([0, 0, 0, 0]), [None, None, "a", "a"])
    assert alone[2] == alone[3]


def test_no_part_is_empty_and_too_few_images_are_refused():
    for count in (2, 3, 4):
        held = HoldOut(0.01).choose(one_hot([0] * count))
        assert held.sum() == 1
    assert sorted(stratified_parts(np.zeros((4, 2)), [0.25] * 4, seed=0)) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="1 images cannot be divided into 2 parts"):
        HoldOut().choose(one_hot([0]))
    with pytest.raises(InputError, match="2 groups of images cannot be divided into 3 parts"):
        HoldOut(folds=3, fold=1).choose(one_hot([0] * 6), ["a", "b"] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "val_fraction is 0.0"),
        ({"fraction": 1.0}, "val_fraction is 1.0"),
        ({"folds": 1, "fold": 1}, "folds is 1"),
        ({"folds": 5}, "belong together"),
        ({"fold": 5}, "belong together"),
        ({"folds": 5, "fold": 6}, "fold is 6"),
        ({"folds": 5, "fold": 0}, "fold is 0"),
        ({"folds": 5, "fold": 1, "fraction": 0.2}, "exclude each other"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(InputError, match=message):
        HoldOut(**options)


def test_a_split_is_read_back_if_the_images_are_those_of_the_file(tmp_path):
    path, names, held = tmp_path / "split.json", ["a/1.jpg", "a/2.jpg", "b/3.jpg"], np.array([False, True, False])
    assert read_split(path, names) is None
    write_split(path, "0.2 of the images", names, held)
    assert read_split(path, names[::-1]).tolist() == [False, True, False]
    assert read_split(path, [*names, "new.jpg"]).tolist() == [False, True, False, False]
    assert read_split(path, ["x.jpg", "y.jpg"]) is None
    assert read_split(path, ["a/2.jpg", "y.jpg"]) is None
    path.write_text("{}")
    with pytest.raises(InputError, match=r"split\.json is damaged"):
        read_split(path, names)


def test_files_with_the_same_content_are_found_under_other_names(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"two"), ("d", b"three"), ("e", b"two")):
        (tmp_path / name).write_bytes(content)
    first, second = ([str(tmp_path / name) for name in names] for names in ("ab", "cdex"))
    assert same_files(first, second) == [(first[1], second[0]), (first[1], second[2])]
    assert same_files(first, [str(tmp_path / "d")]) == []
