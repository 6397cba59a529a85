"""Shared by the tests of interrupted runs: a short run with all kinds of randomness, and its checkpoint."""

import time
from pathlib import Path

import torch

STEPS = 40  # eight epochs of five batches
# All kinds of randomness: dropout, stochastic depth, mixup, augmentation; and an averaged model.
OPTIONS = (
    "--config", "finetune.yaml", "--model.name", "mobile_former_26m", "--data.image_size", "32",
    "--data.batch_size", "4", "--trainer.max_epochs", "8", "--model.dropout", "0.3", "--model.drop_path", "0.2",
    "--model.mixup_alpha", "0.2", "--model.ema_decay", "0.9", "--data.rand_augment", "true", "--name", "x",
    "--checkpoint_every_n_steps", "3",
)  # fmt: skip


def weights(folder: Path, steps: int = STEPS) -> dict:
    """Return the training state in the last checkpoint: model, averaged model, optimiser, schedule."""
    content = torch.load(last(folder), map_location="cpu", weights_only=True)
    assert content["global_step"] == steps
    return {name: content[name] for name in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers")}


def step_of(folder: Path) -> int:
    """Return the optimiser step of the checkpoint from which the run resumes."""
    return torch.load(last(folder), map_location="cpu", weights_only=True)["global_step"]


def last(folder: Path) -> Path:
    """Return the path of the checkpoint from which the run resumes."""
    (task,) = [path.name for path in (folder / "runs").glob("*")] or ["none yet"]
    return folder / "runs" / task / "x" / "checkpoints" / "last.ckpt"


def wait_for(condition, process, seconds=120):
    """Wait until a condition holds while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition did not hold within {seconds} s"
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
