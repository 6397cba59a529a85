import contextlib
import fcntl
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mobile_former.errors import InputError
from mobile_former.training.cli.command import quieten
from mobile_former.training.data.timed_loader import TimedLoader
from mobile_former.training.run.progress import EpochLines, GradientNorm, StopOnNonFiniteLoss, Throughput, TrainingBar
from tests.conftest import ROOT


class Images(Dataset):
    """Eight samples, each of which takes a given time to load."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return {"image": torch.full((2,), 1.0 + index)}


class Tiny(LightningModule):
    """A linear layer whose loss is multiplied by given factors at given optimiser steps."""

    def __init__(self, training=None, validation=None):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.training_factors = training or {}
        self.validation_factors = validation or {}
        self.before_steps = {}

    def training_step(self, batch, batch_idx):
        self.before_steps[self.global_step] = {name: value.clone() for name, value in self.state_dict().items()}
        loss = self.layer(batch["image"]).square().mean()
        return loss * self.training_factors.get(self.global_step, 1.0)

    def validation_step(self, batch, batch_idx):
        factor = self.validation_factors.get(self.global_step, 1.0)
        self.log("val/loss", self.layer(batch["image"]).square().mean() * factor, batch_size=len(batch["image"]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def trainer_in(folder, callbacks, **options):
    last = ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False)
    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "logger": False} | options
    return Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, last],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def fit(folder, module, *callbacks, data=None, **options):
    trainer = trainer_in(folder, callbacks, **options)
    data = DataLoader(data or Images(), batch_size=2)
    trainer.fit(module, data, data)
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_training_loss_stops_the_run_before_the_weights_change(tmp_path, value):
    module = Tiny(training={6: value})
    with pytest.raises(InputError, match=rf"training loss is {value} at step 6 \(epoch 1\).*last\.ckpt.*learning_rate"):
        fit(tmp_path, module, StopOnNonFiniteLoss())
    assert module.global_step == 6
    for name, parameter in module.state_dict().items():
        assert parameter.isfinite().all()
        assert torch.equal(parameter, module.before_steps[6][name])
    assert any(not torch.equal(value, module.before_steps[5][name]) for name, value in module.state_dict().items())


def test_the_checkpoint_in_the_message_is_that_of_the_last_finished_epoch(tmp_path):
    with pytest.raises(InputError) as error:
        fit(tmp_path, Tiny(training={9: math.nan}), StopOnNonFiniteLoss())
    assert f"last good checkpoint is {tmp_path / 'last.ckpt'}" in str(error.value)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 8


def test_a_non_finite_loss_in_the_first_epoch_names_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"at step 0 \(epoch 0\); no epoch was finished"):
        fit(tmp_path, Tiny(training={0: math.nan}), StopOnNonFiniteLoss())
    assert not list(tmp_path.iterdir())


def test_the_loss_of_every_accumulated_batch_is_checked(tmp_path):
    class SecondHalf(Tiny):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (math.nan if batch_idx == 1 else 1)

    module = SecondHalf()
    with pytest.raises(InputError, match="at step 0"):
        fit(tmp_path, module, StopOnNonFiniteLoss(), accumulate_grad_batches=2)
    assert all(torch.equal(value, module.before_steps[0][name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_validation_loss_stops_the_run_and_keeps_the_previous_checkpoint(tmp_path, value, order):
    module = Tiny(validation={8: value})
    callbacks = [StopOnNonFiniteLoss(), ModelCheckpoint(tmp_path / "best", monitor="val/loss")][::order]
    with pytest.raises(InputError, match=rf"validation loss is {value} at step 8 \(epoch 1\).*last\.ckpt"):
        fit(tmp_path, module, *callbacks)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (kept["global_step"], kept["epoch"]) == (4, 0)
    for name, value in kept["state_dict"].items():
        assert torch.equal(value, module.before_steps[4][name])


def test_finite_losses_do_not_stop_a_run(tmp_path):
    trainer = fit(tmp_path, Tiny(training={3: 1e30}), StopOnNonFiniteLoss())
    assert trainer.global_step == 12
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 12


def test_a_non_finite_loss_outside_of_training_does_not_stop_the_run(tmp_path):
    module = Tiny(validation={0: math.nan})
    assert fit(tmp_path, module, StopOnNonFiniteLoss(), num_sanity_val_steps=2).global_step == 12
    trainer = trainer_in(tmp_path, [StopOnNonFiniteLoss()])
    assert math.isnan(trainer.validate(module, DataLoader(Images(), batch_size=2), verbose=False)[0]["val/loss"])


class Speeds(Callback):
    """Keeps the logged images/s of each step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(trainer.callback_metrics["images/s"]))


def test_throughput_includes_the_time_of_loading(tmp_path):
    speeds = Speeds()
    start = time.perf_counter()
    fit(tmp_path, Tiny(), Throughput(), speeds, data=Images(0.01), limit_val_batches=0, max_epochs=2)
    seconds = time.perf_counter() - start
    assert len(speeds.values) == 8
    # Loading takes at least 10 ms per image: below 100 images/s. The whole fit of 16 images is a lower bound.
    assert all(16 / seconds * 0.5 < speed < 100 for speed in speeds.values)


def test_throughput_excludes_the_time_of_validation(tmp_path):
    class SlowValidation(Tiny):
        def validation_step(self, batch, batch_idx):
            time.sleep(0.1)
            super().validation_step(batch, batch_idx)

    speeds = Speeds()
    fit(tmp_path, SlowValidation(), Throughput(), speeds, max_epochs=2)
    # With the 0.4 s of validation, the first step of the second epoch would have less than 2 images / 0.4 s.
    assert speeds.values[4] > 20


def test_throughput_is_logged_as_images_per_second(tmp_path):
    trainer = fit(tmp_path, Tiny(), Throughput(), max_epochs=1)
    assert "images/s" in trainer.progress_bar_metrics
    assert trainer.logged_metrics["images/s"] > 0


class SlowTraining(Tiny):
    """A step of at least 20 ms: 10 ms of loading are a third of the time."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


class ManyImages(Images):
    def __len__(self):
        return 50


class TimedData(LightningDataModule):
    num_workers = 0

    def __init__(self, seconds):
        super().__init__()
        self.images = ManyImages(seconds)

    def train_dataloader(self):
        return TimedLoader(self.images, batch_size=2)


def fit_timed(folder, module, seconds):
    trainer = trainer_in(folder, [Throughput()], max_epochs=2)
    trainer.fit(module, datamodule=TimedData(seconds))
    return trainer


def test_the_time_that_a_step_waits_for_data_is_logged(tmp_path):
    trainer = fit_timed(tmp_path, SlowTraining(), 0.005)
    # A step loads two images of at least 5 ms each. The upper bound is the total of all steps.
    assert 0.01 <= trainer.logged_metrics["data_wait"] <= trainer.train_dataloader.waited


def test_a_run_limited_by_data_loading_is_warned_once(tmp_path, caplog):
    fit_timed(tmp_path, SlowTraining(), 0.01)
    (warning,) = [message for message in caplog.messages if "data loading limits the speed" in message]
    assert "--data.num_workers, now 0" in warning


def test_a_run_with_fast_data_loading_is_not_warned(tmp_path, caplog):
    fit_timed(tmp_path, SlowTraining(), 0.0)
    assert "limits the speed" not in caplog.text


def test_the_norm_of_all_gradients_is_logged_before_clipping(tmp_path):
    class Kept(Tiny):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters()))
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    module = Kept()
    options = {"gradient_clip_val": 1e-3, "log_every_n_steps": 1, "max_epochs": 1}
    trainer = fit(tmp_path, module, GradientNorm(), **options)
    assert trainer.logged_metrics["grad_norm"].item() == pytest.approx(module.norm)
    assert module.norm > 1e-3


def test_the_line_of_an_epoch_has_mean_training_loss_validation_loss_and_speed(tmp_path, capsys):
    class Known(Tiny):
        monitor, curves = "val/loss", {"loss": ("train/loss", "val/loss")}

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + batch_idx

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.tensor(0.5))

    fit(tmp_path, Known(), Throughput(), EpochLines(), max_epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    for line in lines:
        assert "loss 1.5000" in line  # mean of 0, 1, 2 and 3
        assert "val/loss 0.5000" in line
        assert "images/s" in line


def test_the_line_of_an_epoch_has_no_scores_of_an_earlier_one(tmp_path, capsys):
    class Scored(Tiny):
        monitor, curves = "val/loss", {"loss": ("val/loss",)}

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", torch.tensor(0.5))

    fit(tmp_path, Scored(), Throughput(), EpochLines(), max_epochs=2, max_steps=6)  # an epoch has four steps
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert "val/loss" in first
    assert "val/loss" not in second


class Shown(Tiny):
    """A module with as many figures as a detector."""

    monitor = "val/AP"
    curves = {  # noqa: RUF012
        "loss": ("train/loss", "val/loss"),
        "terms": ("train/loss_ce", "train/loss_bbox", "train/loss_giou"),
        "scores": ("val/AP", "val/AP50", "val/AP75"),
    }

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, prog_bar=True)
        self.log_dict(dict.fromkeys(self.curves["terms"], loss), prog_bar=True, on_step=False, on_epoch=True)
        time.sleep(0.3)  # so that the bar is drawn, also on a busy machine
        return loss

    def validation_step(self, batch, batch_idx):
        self.log_dict({"val/loss": 0.5, **dict.fromkeys(self.curves["scores"], 0.25)}, prog_bar=True)


def show(folder):
    """Train two epochs of four steps with the callbacks of a terminal."""
    quieten()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[Throughput(), TrainingBar(), EpochLines()], default_root_dir=folder,
    )  # fmt: skip
    data = DataLoader(Images(), batch_size=2)
    print("header")
    trainer.fit(Shown(), data, data)


def test_a_terminal_keeps_a_line_for_each_epoch_above_a_bar_of_80_columns(tmp_path):
    code = f"from tests.mobile_former.training.run.test_progress import show; show({str(tmp_path)!r})"
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONWARNINGS": "ignore"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    output = b""
    with contextlib.suppress(OSError):  # the end of the output
        while part := os.read(controller, 65536):
            output += part
    os.close(controller)
    assert process.wait() == 0, output.decode()
    printed = output.decode().split("header")[1]
    lines = [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed))]
    assert not [line for line in lines if len(line) > 80]
    kept = [line for line in lines if "images/s" in line]
    assert [line.split("  ")[0] for line in kept] == ["epoch 1/2", "epoch 2/2"]
    assert all("val/AP 0.2500" in line for line in kept)
    bars = [line for line in lines if line.startswith("epoch") and line not in kept]
    assert any("4/4" in bar and "val/AP: 0.250" in bar for bar in bars)
    first = [bar for bar in bars if bar.startswith("epoch 1/2") and " 4/4 " not in bar]
    assert first
    assert not [bar for bar in first if "val/AP" in bar], "there is no score before the first validation"
