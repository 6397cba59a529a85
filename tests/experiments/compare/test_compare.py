"""``python -m experiments.compare``: models trained with one recipe over several seeds."""

import json
import re
import statistics

import cv2
import pytest
import yaml

from detection.data.scenes import write_coco
from experiments.sweep.plan import read_comparison
from mobile_former import InputError
from mobile_former.training.run.folder import RunFolder
from tests.conftest import ROOT, run_module, write_image_folder

SMALL = {
    "data.image_size": 32,
    "data.batch_size": 4,
    "data.num_workers": 0,
    "trainer.max_epochs": 2,
    "model.warmup_epochs": 0,
}


def write_plan(path, **content):
    content = {"task": "classification", "config": "finetune.yaml", "options": SMALL, "seeds": [0, 1]} | content
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("compare") / "colours", ("left", "right"), train=6, val=4)


@pytest.fixture(scope="module")
def compared(colours, tmp_path_factory):
    """Run a comparison twice; one of its models cannot be built."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("compared")
    models = {
        "Mobile-Former-26M": {"model.name": "mobile_former_26m"},
        "nonsense": {"model.name": "mobile_former_27m"},
        "MobileNetV2 (0.35)": {"model.name": "transformers/mobilenet_v2_0.35", "model.learning_rate": 1e-3},
    }
    write_plan(folder / "colours.yaml", models=models)
    command = ("experiments.compare", "--config", "colours.yaml", "--data.root", str(colours), "--workers", "2")
    first = run_module(*command, "--seeds", "0", cwd=folder)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("runs/compare/colours/**/best.ckpt")}
    again = run_module(*command, cwd=folder)
    return folder / "runs/compare/colours", first, again, times


@pytest.mark.slow
def test_a_failed_run_is_reported_and_does_not_stop_the_others(compared):
    output, first, again, _ = compared
    for result, count in ((first, 1), (again, 2)):
        assert result.returncode == 1
        failed = re.findall(
            r"^error: trial \d+ failed: no model .*'mobile_former_27m'.*see .*log\)$", result.stderr, re.M
        )
        assert len(failed) == count
    rows = json.loads((output / "comparison.json").read_text())
    assert [row["label"] for row in rows] == ["Mobile-Former-26M", "MobileNetV2 (0.35)"]
    assert all(row["seeds"] == [0, 1] for row in rows)


@pytest.mark.slow
def test_the_reported_numbers_are_those_of_the_runs(compared):
    output, _, again, _ = compared
    for row in json.loads((output / "comparison.json").read_text()):
        name = {"Mobile-Former-26M": "mobile-former-26m", "MobileNetV2 (0.35)": "mobilenetv2-0.35"}[row["label"]]
        last, best = [], []
        for seed in (0, 1):
            folder = RunFolder(output / "classification" / f"model-{name}-seed_everything-{seed}")
            best.append(json.loads((folder.path / "metrics.json").read_text())["val/top1"])
            last.append([point["val/top1"] for point in folder.history() if "val/top1" in point][-1])
        assert row["scores"]["top1"] == {"last": last, "best": best}
        assert row["latency"] > 0
        assert row["image_size"] == [32, 32]
        cells = f"{statistics.mean(last):.4f} ± {statistics.stdev(last):.4f}"
        table = (output / "comparison.md").read_text()
        (line,) = [line for line in table.splitlines() if line.startswith(f"| {row['label']} |")]
        assert cells in line
        assert f"{row['params'] / 1e6:.2f} M" in line
        assert line in again.stdout
    assert cv2.imread(str(output / "comparison.png")).std() > 5


@pytest.mark.slow
def test_seeds_may_be_added_and_finished_runs_are_kept(compared):
    _, first, again, times = compared
    assert len(times) == 2
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(re.findall(r"^\[\d/3\] trial \d: model .*, seed_everything 0  val/top1 ", first.stdout, re.M)) == 3
    assert "seed_everything 1  val/top1 " in again.stdout


@pytest.mark.slow
def test_other_options_for_runs_that_exist_are_refused(compared, colours):
    output, _, _, _ = compared
    config = output.parents[2] / "colours.yaml"
    command = ("experiments.compare", "--config", str(config), "--data.root", str(colours))
    result = run_module(*command, "--trainer.max_epochs", "3", cwd=output.parents[2])
    assert result.returncode == 1
    assert re.search(
        r"error: the study 'colours' was begun with another config .* give another --output", result.stderr
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_detectors_are_compared_on_the_test_images_too(tmp_path):
    pytest.importorskip("transformers")
    for split, count in (("train", 6), ("val", 3)):
        write_coco(tmp_path / "coco", split, count)
    annotations = tmp_path / "coco" / "annotations"
    (annotations / "instances_test.json").write_text((annotations / "instances_val.json").read_text())
    options = {"data.short_sides": [64], "data.short_side": 64, "data.num_workers": 0, "trainer.max_epochs": 1}
    models = {
        "Mobile-Former-26M": {"model.name": "retinanet_mf_26m"},
        "ResNet-18": {"model.name": "retinanet_mf_26m", "model.backbone": "transformers/resnet18"},
    }
    plan = {"task": "detection", "models": models, "options": options, "split": "test", "seeds": [0]}
    write_plan(tmp_path / "coco.yaml", **plan)
    command = (
        "experiments.compare",
        "--config",
        "coco.yaml",
        "--data.root",
        "coco",
        "--output",
        "out",
        "--workers",
        "2",
    )
    result = run_module(*command, cwd=tmp_path, timeout=480)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["label"] for row in rows] == [*models]
    for row in rows:
        assert row["scores"].keys() == {"AP", "AP50"}
        # The test images are the validation images here.
        assert row["scores"]["AP"]["test"] == pytest.approx(row["scores"]["AP"]["best"], abs=1e-4)
    assert "AP50 (test, best epoch on val)" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"models": {}}, "lacks models"),
        ({"models": {"a": {"model.name": "x"}}, "task": "segmentation"}, "task is 'segmentation'"),
        ({"models": {"a": {"model.name": "x"}}, "seed": 1}, "'seed' is not known: did you mean 'seeds'"),
        ({"models": ["mobile_former_26m"]}, "models must map each label to its options"),
        ({"models": {"a": {"model.name": "x"}}, "seeds": ["one"]}, "seeds must be a list of whole numbers"),
        ({"models": {"a b": {"model.name": "x"}, "a-b": {"model.name": "y"}}}, "give the same folder"),
        ({"models": {"a": {"model.name": "x"}}, "split": "train"}, "split is 'train'"),
    ],
)
def test_an_invalid_config_is_reported_in_one_line(content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_comparison(write_plan(tmp_path / "plan.yaml", **content))


COMPARISONS = [path for path in (ROOT / "experiments" / "configs").glob("*.yaml") if "models:" in path.read_text()]


@pytest.mark.parametrize("path", sorted(COMPARISONS), ids=lambda path: path.stem)
def test_the_repositorys_comparisons_can_be_read(path):
    content = yaml.safe_load(path.read_text())
    plan, split = read_comparison(path)
    assert split == content.get("split", "val")
    assert len(plan.points) == len(content["models"]) * len(content["seeds"])
    assert read_comparison(path, [3, 4])[0].points[-1] == {"seed_everything": 4, "model": list(content["models"])[-1]}


def test_a_models_options_take_the_place_of_its_label(tmp_path):
    models = {"Mobile-Former-26M": {"model.name": "mobile_former_26m"}, "other": {"model.name": "x", "a": 1}}
    plan, _ = read_comparison(write_plan(tmp_path / "plan.yaml", models=models, options={"a": 0, "b": 2}))
    assert plan.arguments({"seed_everything": 1, "model": "other"}) == [
        "--config", "finetune.yaml", "--a", "1", "--b", "2", "--seed_everything", "1", "--model.name", "x",
    ]  # fmt: skip
    params = {"model": "Mobile-Former-26M", "seed_everything": 0}
    assert plan.run_name(3, params) == "model-mobile-former-26m-seed_everything-0"
