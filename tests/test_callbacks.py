"""Lightning's callbacks, given on the command line."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from mobile_former.training.run.folder import RunFolder
from tests.conftest import run_module, write_image_folder
from tests.detection.conftest import write_shapes

OPTIONS = {
    "classification": ("--model.name", "mobile_former_26m", "--data.image_size", "32"),
    "detection": (
        "--model.name", "e2e_mf_26m", "--data.short_sides", "[64]", "--data.short_side", "64", "--data.group_shapes",
        "false",
    ),
}  # fmt: skip
FINDERS = (
    "--trainer.callbacks", "BatchSizeFinder", "--trainer.callbacks.max_trials", "2",
    "--trainer.callbacks.steps_per_trial", "1", "--trainer.callbacks+", "LearningRateFinder",
    "--trainer.callbacks.num_training_steps", "20", "--model.learning_rate_batch", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_image_folder(folder / "classification", ("blue", "red"), train=30, val=3)
    write_shapes(folder / "detection", train=60, val=5)
    return folder


def fit(task, data, folder, *more):
    return run_module(
        f"{task}.fit", "--config", "finetune.yaml", *OPTIONS[task], "--data.root", str(data / task),
        "--data.num_workers", "0", "--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1", "--name",
        "x", "--model.warmup_epochs", "0.2", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", *more,
        cwd=folder,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("task", OPTIONS)
@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (("StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "1e-3"), r"give --model\.ema_decay"),
        (("ModelPruning", "--trainer.callbacks.pruning_fn", "l1_unstructured"), "channels-last weights"),
    ],
)
def test_a_callback_that_cannot_work_is_refused_in_one_line(task, callback, expected, data, tmp_path):
    result = fit(task, data, tmp_path, "--trainer.callbacks", *callback)
    assert result.returncode == 1
    assert re.fullmatch(rf"error: --trainer\.callbacks {callback[0]}: .*{expected}.*\n", result.stderr)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", OPTIONS)
def test_a_run_uses_and_records_what_finders_have_found(task, data, tmp_path):
    """Single callbacks are accepted, too."""
    result = fit(task, data, tmp_path, *FINDERS, "--data.batch_size", "16", "--trainer.limit_train_batches", "1.0")
    assert result.returncode == 0, result.stderr
    folder = RunFolder(tmp_path / "runs" / task / "x")
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    content = torch.load(folder.last, weights_only=True)
    batch, rate = config["data"]["batch_size"], config["model"]["learning_rate"]
    assert batch == content["datamodule_hyper_parameters"]["batch_size"] == 4
    assert rate == content["hyper_parameters"]["learning_rate"] != 2e-3
    assert f"found  batch_size 4 (was 16), learning_rate {rate:.4g} (was" in result.stdout
    rates = [row["lr"] for row in folder.history() if "lr" in row]
    assert len(rates) == content["global_step"] == 15
    assert max(rates) == pytest.approx(rate * 4 / 8)  # for a reference batch of 8
    assert rates[0] == pytest.approx(max(rates) / 3)  # warm-up of 3 steps
    assert 0 < rates[-1] < 0.05 * max(rates)

    result = fit(task, data, tmp_path, *FINDERS, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert result.returncode == 0, result.stderr
    assert "new " not in result.stdout
    config = yaml.safe_load((folder.path / "config.resumed.yaml").read_text())
    assert (config["data"]["batch_size"], config["model"]["learning_rate"]) == (batch, rate)
    content = torch.load(folder.last, weights_only=True)
    assert content["global_step"] == 30
    assert content["hyper_parameters"]["learning_rate"] == rate


@pytest.mark.slow
@pytest.mark.parametrize("task", OPTIONS)
def test_one_callback_is_a_list_of_one(task, data, tmp_path):
    result = fit(task, data, tmp_path, "--trainer.callbacks", "LearningRateMonitor")
    assert result.returncode == 0, result.stderr
    assert "lr/model" in next(Path(tmp_path).rglob("metrics.csv")).read_text()
