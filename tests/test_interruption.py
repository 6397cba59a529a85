"""A run that is stopped at any moment and resumed ends like an uninterrupted one."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback

from experiments.storm.checks import same
from mobile_former.training.run.checkpoint_io import WholeCheckpointIO
from tests.conftest import ROOT, run_module
from tests.detection.conftest import write_shapes
from tests.interrupted import OPTIONS, STEPS, last, step_of, wait_for, weights


def run(folder, *arguments):
    """Start or resume a fit, as the script of a scheduler would."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments, "--ckpt_path", "auto"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def start(folder, data, *more):
    return run(folder, "classification.fit", *OPTIONS, "--data.root", str(data), *more)


def finish(folder, data, *more):
    process = start(folder, data, *more)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(two_colours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, two_colours)
    return weights(folder)


def test_a_run_that_is_killed_within_an_epoch_resumes_from_its_last_checkpoint(undisturbed, two_colours, tmp_path):
    process = start(tmp_path, two_colours)
    wait_for(lambda: last(tmp_path).is_file(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    step = step_of(tmp_path)
    assert step % 3 == 0 or step % 5 == 0
    finish(tmp_path, two_colours)
    assert same(weights(tmp_path), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_by_a_signal_writes_a_checkpoint_and_resumes(number, undisturbed, two_colours, tmp_path):
    process = start(tmp_path, two_colours, "--checkpoint_every_n_steps", "null", "--data.num_workers", "1")
    wait_for(lambda: last(tmp_path).is_file(), process)  # end of the first epoch
    time.sleep(random.Random(int(number)).uniform(0, 0.5))
    os.killpg(process.pid, number)  # to all processes, as Ctrl-C and schedulers do
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "stopping after this step" in output
    assert "to resume, repeat the command with --name x --ckpt_path last" in output
    assert "Traceback" not in output
    finish(tmp_path, two_colours)
    assert same(weights(tmp_path), undisturbed)


class SignalledEarly(Callback):
    """Sends SIGTERM before the first step."""

    def on_sanity_check_end(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_run_that_is_stopped_before_its_first_step_does_not_exit_with_success(undisturbed, two_colours, tmp_path):
    process = start(tmp_path, two_colours, "--trainer.callbacks+", "tests.test_interruption.SignalledEarly")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert step_of(tmp_path) == 1
    finish(tmp_path, two_colours)
    assert same(weights(tmp_path), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_last_checkpoint_is_replaced_by_the_previous_one(damage, undisturbed, two_colours, tmp_path):
    process = start(tmp_path, two_colours)
    wait_for(lambda: last(tmp_path).with_name("previous.ckpt").is_file(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    content = last(tmp_path).read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        last(tmp_path).unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
        last(tmp_path).write_bytes(content[:middle] if damage == "cut" else flipped)
    output = finish(tmp_path, two_colours)
    if damage != "gone":
        assert re.search(
            r"last\.ckpt is cut short or damaged .* Resuming from the previous checkpoint, .*previous\.ckpt", output
        )
    assert same(weights(tmp_path), undisturbed)


@pytest.mark.slow
def test_the_error_for_damaged_checkpoints_names_all_of_them(two_colours, tmp_path):
    process = start(tmp_path, two_colours)
    wait_for(lambda: last(tmp_path).with_name("previous.ckpt").is_file(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for path in last(tmp_path).parent.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])
    options = ("--data.root", str(two_colours), "--ckpt_path", "last")
    result = run_module("classification.fit", *OPTIONS, *options, cwd=tmp_path)
    assert result.returncode == 1
    assert last(tmp_path).is_file()
    assert re.search(r"^error: every checkpoint of the run is damaged: .*last\.ckpt.*previous\.ckpt", result.stderr)


@pytest.mark.slow
def test_within_an_epoch_a_run_resumes_only_with_the_same_batch_size(two_colours, tmp_path):
    process = start(tmp_path, two_colours)
    wait_for(lambda: last(tmp_path).is_file() and step_of(tmp_path) % 5, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if step_of(tmp_path) % 5 == 0:
        pytest.skip("the checkpoint is already that of the end of an epoch")
    options = ("--data.root", str(two_colours), "--ckpt_path", "last", "--data.batch_size", "8")
    result = run_module("classification.fit", *OPTIONS, *options, cwd=tmp_path)
    assert result.returncode == 1
    assert re.search(
        r"^error: the run was stopped within epoch \d with --data.batch_size 4 and 1 .* now has 8", result.stderr
    )
    processes = ("--trainer.accelerator", "cpu", "--trainer.strategy", "ddp", "--trainer.devices", "2")
    result = run_module("classification.fit", *OPTIONS, *options[:4], *processes, cwd=tmp_path)
    assert result.returncode == 1
    assert re.fullmatch(r"error: the run was stopped within epoch .* now has 4 and 2: .*\n", result.stderr)
    assert last(tmp_path).is_file(), "a run that cannot resume keeps its checkpoint"


def test_a_run_that_stopped_before_its_first_checkpoint_restarts_in_its_folder(two_colours, tmp_path):
    folder = tmp_path / "runs" / "classification" / "x"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {}\n")
    (folder / "metrics.csv").write_text("epoch,step\n7,7\n")
    finish(tmp_path, two_colours, "--trainer.max_epochs", "1")
    assert [path.name for path in folder.parent.iterdir()] == ["x"]
    assert "7,7" not in (folder / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_second_start_of_a_run_is_refused_until_the_first_one_ends(task, two_colours, tmp_path):
    if task == "detection":
        data = write_shapes(tmp_path / "shapes", train=22, val=3)
        arguments = [
            "detection.fit", "--config", "finetune.yaml", "--model.name", "e2e_mf_26m", "--data.short_sides", "[64]",
            "--data.short_side", "64", "--data.root", str(data), "--name", "x", "--trainer.max_epochs", "2",
        ]  # fmt: skip
    else:
        arguments = ["classification.fit", *OPTIONS, "--data.root", str(two_colours), "--trainer.max_epochs", "2"]
    first = run(tmp_path, *arguments)
    folder = tmp_path / "runs" / task / "x"
    wait_for(lambda: (folder / "augmented.png").is_file(), first)
    os.killpg(first.pid, signal.SIGSTOP)  # before its first checkpoint
    for option in ("auto", "last"):
        second = run_module(*arguments, "--ckpt_path", option, cwd=tmp_path)
        assert second.returncode == 1
        if option == "auto":
            assert re.fullmatch(rf"error: .*/x is in use by process {first.pid} on .*--name\n", second.stderr)
    os.killpg(first.pid, signal.SIGCONT)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 0, output
    assert [path.name for path in folder.parent.iterdir()] == ["x"]
    assert not (folder / "run.lock").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["shards", "detection"])
def test_runs_on_shards_and_batches_of_similar_shapes_resume_too(kind, two_colours, tmp_path):
    """The run is stopped twice within an epoch, and resumes once with another number of loading processes."""
    if kind == "shards":
        result = run_module("classification.shard", str(two_colours), "shards", "--shard_samples", "5", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        data = ("--data.dataset", "shards", "--data.root", str(tmp_path / "shards"))
        arguments = ["classification.fit", *OPTIONS, *data]
        steps = 48  # all batches are full
        workers = ("--data.num_workers", "2")
    else:
        data = write_shapes(tmp_path / "shapes", train=20, val=3)
        arguments = [
            "detection.fit", "--config", "finetune.yaml", "--model.name", "e2e_mf_26m", "--data.root", str(data),
            "--data.short_sides", "[64, 96]", "--data.short_side", "64", "--trainer.max_epochs", "8",
            "--checkpoint_every_n_steps", "3", "--name", "x", "--model.ema_decay", "0.9",
        ]  # fmt: skip
        workers, steps = ("--data.num_workers", "1"), STEPS
    found = []
    for name in ("uninterrupted", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        stops = 2 if name == "stopped" else 0
        for stop in range(stops):
            process = run(folder, *arguments, *workers)
            step = 0 if stop == 0 else step_of(folder)
            wait_for(lambda folder=folder, step=step: last(folder).is_file() and step_of(folder) > step, process)
            process.terminate()
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 143, output
        process = run(folder, *arguments, *(("--data.num_workers", "0") if stops else workers))
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        found.append(weights(folder, steps))
    assert same(*found)


# The disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if not done or done.returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_and_keeps_the_earlier_checkpoint(small_disk):
    writer, path = WholeCheckpointIO(), small_disk / "last.ckpt"
    writer.save_checkpoint({"weights": torch.ones(100_000)}, path)
    with pytest.raises(
        OSError, match=r"cannot write the checkpoint .*last\.ckpt: No space left on device\. The earlier"
    ):
        writer.save_checkpoint({"weights": torch.ones(900_000)}, path)
    assert torch.load(path, weights_only=True)["weights"].sum() == 100_000
    assert [found.name for found in small_disk.iterdir()] == ["last.ckpt"]


def test_a_run_on_a_full_disk_ends_with_one_error(small_disk, two_colours):
    """The pictures and logs of the run fit on the disk. The checkpoint of some megabytes does not."""
    result = run_module(
        "classification.fit",
        *OPTIONS,
        "--data.root",
        str(two_colours),
        "--runs_folder",
        str(small_disk),
        cwd=Path.cwd(),
    )
    assert result.returncode == 1
    (error,) = re.findall("^error: .*$", result.stderr, re.MULTILINE)
    assert "cannot write the checkpoint" in error
    assert "No space left on device. There is no earlier checkpoint" in error
    assert "Traceback" not in result.stderr
