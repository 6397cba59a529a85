import csv
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from mobile_former.errors import InputError
from mobile_former.training.run.folder import ContinuedCSVLogger, RunCheckpoint, RunFolder

HPC = "hpc_ckpt_1.ckpt"  # of Lightning's own handler for SLURM


def finish_an_epoch(folder):
    folder.checkpoints.mkdir(parents=True)
    folder.last.write_bytes(b"weights")


def test_the_first_run_gets_the_name_and_later_runs_a_number(tmp_path):
    made = [RunFolder.create(tmp_path / "runs", "classification", "first") for _ in range(3)]
    parent = tmp_path / "runs" / "classification"
    assert [folder.path for folder in made] == [parent / "first", parent / "first-2", parent / "first-3"]
    assert all(folder.path.is_dir() for folder in made)
    assert RunFolder.create(tmp_path / "runs", "detection", "first").path == tmp_path / "runs" / "detection" / "first"


def test_a_new_run_does_not_touch_the_folder_of_an_earlier_one(tmp_path):
    first = RunFolder.create(tmp_path, "classification", "mine")
    first.write_metrics({"val/top1": 0.5})
    assert RunFolder.create(tmp_path, "classification", "mine").path != first.path
    assert json.loads((first.path / "metrics.json").read_text()) == {"val/top1": 0.5}


def test_runs_that_start_at_the_same_time_never_share_a_folder(tmp_path):
    start = threading.Barrier(8)

    def run(_):
        start.wait()
        return [RunFolder.create(tmp_path / "runs", "classification", "race").path.name for _ in range(10)]

    with ThreadPoolExecutor(8) as threads:
        taken = [name for names in threads.map(run, range(8)) for name in names]
    assert sorted(taken) == sorted(["race", *(f"race-{number}" for number in range(2, 81))])


def test_an_interrupted_run_is_resumed_in_its_folder(tmp_path):
    folder = RunFolder.create(tmp_path, "classification", "mine")
    finish_an_epoch(folder)
    resumed = RunFolder.resume(tmp_path, "classification", "mine")
    assert resumed.path == folder.path
    assert resumed.last == tmp_path / "classification" / "mine" / "checkpoints" / "last.ckpt"


def test_restart_replaces_the_folder_of_a_run_without_a_checkpoint(tmp_path):
    path = tmp_path / "task" / "x"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("")
    (path / "metrics.csv").write_text("old")
    assert RunFolder.restart(tmp_path, "task", "x").path == path
    assert [found.name for found in path.iterdir()] == ["run.lock"]


@pytest.mark.parametrize(
    "kept", ["checkpoints/best.ckpt", "checkpoints/previous.ckpt", "metrics.json", "photo.jpg", HPC]
)
def test_restart_keeps_checkpoints_results_and_files_of_others(tmp_path, kept):
    path = tmp_path / "task" / "x" / kept
    path.parent.mkdir(parents=True)
    path.write_text("kept")
    assert RunFolder.restart(tmp_path, "task", "x").path.name == "x-2"
    assert path.read_text() == "kept"


@pytest.mark.parametrize("name", ["..", ".", "/elsewhere", "a/b"])
def test_restart_deletes_nothing_outside_of_the_run_folder(tmp_path, name):
    (tmp_path / "task" / "other").mkdir(parents=True)
    with pytest.raises(InputError, match="must be the name of one folder"):
        RunFolder.restart(tmp_path, "task", name)
    assert (tmp_path / "task" / "other").is_dir()


def test_resuming_without_a_checkpoint_names_the_runs_that_have_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine/checkpoints/last\.ckpt.*--name \(no run in .*classification"):
        RunFolder.resume(tmp_path, "classification", "mine")
    for name in ("zebra", "apple"):
        finish_an_epoch(RunFolder.create(tmp_path, "classification", name))
    RunFolder.create(tmp_path, "classification", "stopped")
    finish_an_epoch(RunFolder.create(tmp_path, "detection", "boxes"))
    for name in ("mine", "stopped"):
        with pytest.raises(FileNotFoundError, match=r"runs with a checkpoint: apple, zebra\)"):
            RunFolder.resume(tmp_path, "classification", name)
    assert not (tmp_path / "classification" / "mine").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/x", "../x", "x/"])
def test_a_name_that_is_not_a_single_folders_is_an_error(tmp_path, name):
    for make in (RunFolder.create, RunFolder.resume):
        with pytest.raises(InputError, match="--name"):
            make(tmp_path / "runs", "classification", name)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["mobile_former_26m-digits", "Versuch 3 (ä, 猫)", "a.b", "-x", "..."])
def test_any_other_name_is_used_unchanged(tmp_path, name):
    assert RunFolder.create(tmp_path, "classification", name).path.name == name


@pytest.mark.parametrize("blocked", ["runs", "runs/classification", "runs/classification/mine"])
def test_a_file_with_the_name_of_the_folder_is_an_error_and_stays(tmp_path, blocked):
    path = tmp_path / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="cannot create the run folder"):
        RunFolder.create(tmp_path / "runs", "classification", "mine")
    assert path.read_text() == "mine"


def test_a_name_too_long_for_the_file_system_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot create the run folder"):
        RunFolder.create(tmp_path, "classification", "x" * 300)


class Logging(LightningModule):
    """A linear layer that logs each step and each epoch, and fails at a given step."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.fails_at = fails_at

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise RuntimeError("stopped")
        self.log("loss", torch.tensor(float(self.global_step)))
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(100.0 + self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(folder, *, fails_at=None, resume=False, epochs=4):
    step = torch.load(folder.last, weights_only=True)["global_step"] if resume else None
    trainer = Trainer(
        max_epochs=epochs,
        log_every_n_steps=1,
        accelerator="cpu",
        logger=ContinuedCSVLogger(folder, step),
        callbacks=[ModelCheckpoint(dirpath=folder.checkpoints, filename="last", enable_version_counter=False)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = DataLoader(torch.zeros(3, 2))
    trainer.fit(Logging(fails_at), data, data, ckpt_path=folder.last if resume else None, weights_only=True)


def test_a_resumed_run_writes_the_same_metrics_file_as_an_uninterrupted_one(tmp_path):
    straight = RunFolder.create(tmp_path, "classification", "straight")
    fit(straight)
    folder = RunFolder.create(tmp_path, "classification", "resumed")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(folder, fails_at=8)  # after two of the three steps of the third epoch, which are repeated
    assert [row["loss"] for row in folder.history() if "loss" in row] == list(range(8))
    fit(folder, resume=True)
    assert folder.history() == straight.history()
    assert [row["loss"] for row in folder.history() if "loss" in row] == list(range(12))
    assert [row["val/loss"] for row in folder.history() if "val/loss" in row] == [103, 106, 109, 112]
    assert len(list(folder.path.rglob("*.csv"))) == 1


def test_a_run_that_is_resumed_twice_keeps_all_rows(tmp_path):
    folder = RunFolder.create(tmp_path, "classification", "often")
    for fails_at, resume in ((4, False), (7, True)):
        with pytest.raises(RuntimeError, match="stopped"):
            fit(folder, fails_at=fails_at, resume=resume)
    fit(folder, resume=True)
    assert [row["loss"] for row in folder.history() if "loss" in row] == list(range(12))


def test_the_history_has_numbers_without_empty_cells(tmp_path):
    folder = RunFolder.create(tmp_path, "classification", "mine")
    assert folder.history() == []
    with folder.metrics_csv.open("w", newline="") as file:
        csv.writer(file).writerows([["epoch", "step", "loss"], ["0", "1", ""], ["0", "2", "0.25"], ["1", "3", "inf"]])
    assert folder.history() == [
        {"epoch": 0, "step": 1},
        {"epoch": 0, "step": 2, "loss": 0.25},
        {"epoch": 1, "step": 3, "loss": float("inf")},
    ]


def test_a_row_that_was_cut_short_is_left_out(tmp_path):
    folder = RunFolder.create(tmp_path, "classification", "mine")
    folder.metrics_csv.write_text("epoch,loss,step\r\n0,0.5,1\r\n0,0.25,1")
    assert folder.history() == [{"epoch": 0, "loss": 0.5, "step": 1}]


def test_a_full_disk_costs_no_row_of_the_metrics(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path, "classification", "mine")
    rows = [{"epoch": 0, "step": step, "loss": 0.5} for step in range(3)]
    logger = ContinuedCSVLogger(folder)
    for row in rows:
        logger.log_metrics({"epoch": 0, "loss": 0.5}, row["step"])
    assert folder.history() == rows
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot write .*metrics\.csv: No space left"):
        logger.log_metrics({"epoch": 0, "val/loss": 1.0}, 2)  # a new column
    with pytest.raises(OSError, match="No space left"):
        ContinuedCSVLogger(folder, resumed_step=2).experiment  # noqa: B018
    assert folder.history() == rows


@pytest.mark.parametrize(("scores", "best"), [([-1, -1, -1], 3), ([-1, 0.2, -1], 2), ([0.1, 0.3, 0.2], 2)])
def test_the_best_checkpoint_is_the_last_one_until_a_score_can_be_measured(tmp_path, scores, best):
    callback = RunCheckpoint(dirpath=tmp_path, filename="best", monitor="val/AP", mode="max")
    trainer = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    for epoch, score in enumerate(scores, start=1):
        current = torch.tensor(float(score))
        if callback.check_monitor_top_k(trainer, current):
            callback.best_k_models = {"best.ckpt": current}
            callback.kth_best_model_path = "best.ckpt"
            kept = epoch
    assert kept == best
