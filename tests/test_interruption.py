"""A run that is stopped at any moment goes on as if it hadn't been."""

import errno
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

from mobile_former.training.run import checkpoint_io
from mobile_former.training.run.checkpoint_io import WholeCheckpointIO
from tests.conftest import ROOT, run_module
from tests.detection.conftest import write_shapes
from tests.interrupted import OPTIONS, STEPS, last, same, step_of, wait_for, weights


def run(folder, *arguments):
    """Begin a fit, or go on with it, as a scheduler's script would."""
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


def test_a_run_that_is_killed_within_an_epoch_goes_on_from_its_last_step_checkpoint(undisturbed, two_colours, tmp_path):
    process = start(tmp_path, two_colours)
    wait_for(lambda: last(tmp_path).is_file(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    step = step_of(tmp_path)
    assert step % 3 == 0 or step % 5 == 0
    finish(tmp_path, two_colours)
    assert same(weights(tmp_path), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_told_to_stop_writes_a_checkpoint_and_goes_on(number, undisturbed, two_colours, tmp_path):
    process = start(tmp_path, two_colours, "--checkpoint_every_n_steps", "null", "--data.num_workers", "1")
    wait_for(lambda: last(tmp_path).is_file(), process)  # the first epoch is over
    time.sleep(random.Random(int(number)).uniform(0, 0.5))
    os.killpg(process.pid, number)  # as Ctrl-C and schedulers do, to all of its processes
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert "stopping after this step" in output
    assert "--name x --ckpt_path last goes on" in output
    assert "Traceback" not in output
    finish(tmp_path, two_colours)
    assert same(weights(tmp_path), undisturbed)


class SignalledEarly(Callback):
    """The run is told to stop before its first step."""

    def on_sanity_check_end(self, trainer, pl_module):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_told_to_stop_before_its_first_step_a_run_does_not_say_that_it_is_done(undisturbed, two_colours, tmp_path):
    process = start(tmp_path, two_colours, "--trainer.callbacks+", "tests.test_interruption.SignalledEarly")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert step_of(tmp_path) == 1
    finish(tmp_path, two_colours)
    assert same(weights(tmp_path), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(damage, undisturbed, two_colours, tmp_path):
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
            r"last\.ckpt is cut short or damaged .* Going on from the one before, .*previous\.ckpt", output
        )
    assert same(weights(tmp_path), undisturbed)


@pytest.mark.slow
def test_where_every_checkpoint_is_damaged_the_error_says_so(two_colours, tmp_path):
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
    assert re.search(r"^error: no checkpoint to go on from is whole: .*last\.ckpt.*previous\.ckpt", result.stderr)


@pytest.mark.slow
def test_within_an_epoch_a_run_goes_on_with_batches_of_the_same_size_alone(two_colours, tmp_path):
    process = start(tmp_path, two_colours)
    wait_for(lambda: last(tmp_path).is_file() and step_of(tmp_path) % 5, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if step_of(tmp_path) % 5 == 0:
        pytest.skip("the checkpoint of an epoch's end was quicker")
    options = ("--data.root", str(two_colours), "--ckpt_path", "last", "--data.batch_size", "8")
    result = run_module("classification.fit", *OPTIONS, *options, cwd=tmp_path)
    assert result.returncode == 1
    assert re.search(
        r"^error: the run was stopped within epoch \d, with --data.batch_size 4 and 1 .* are 8", result.stderr
    )
    assert last(tmp_path).is_file(), "a run that cannot go on keeps what it has"


def test_a_run_stopped_before_its_first_checkpoint_starts_again_in_its_folder(two_colours, tmp_path):
    folder = tmp_path / "runs" / "classification" / "x"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {}\n")
    (folder / "metrics.csv").write_text("epoch,step\n7,7\n")
    finish(tmp_path, two_colours, "--trainer.max_epochs", "1")
    assert [path.name for path in folder.parent.iterdir()] == ["x"]
    assert "7,7" not in (folder / "metrics.csv").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["shards", "detection"])
def test_shards_and_batches_of_similar_shape_go_on_too(kind, two_colours, tmp_path):
    """Stopped twice, each time within an epoch, and once with another number of loading processes."""
    if kind == "shards":
        result = run_module("classification.shard", str(two_colours), "shards", "--shard_samples", "5", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        data = ("--data.dataset", "shards", "--data.root", str(tmp_path / "shards"))
        arguments = ["classification.fit", *OPTIONS, *data]
        steps = 48  # no batch is left out
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
    for name in ("left alone", "stopped"):
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_at_random_moments_leave_no_trace_in_the_weights(undisturbed, two_colours, tmp_path):
    draw = random.Random(0)
    for _ in range(10):
        process = start(tmp_path, two_colours)
        try:
            process.wait(timeout=draw.uniform(4, 12))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0:
            # All 40 steps are done: begin again, so that ten processes are killed.
            assert same(weights(tmp_path), undisturbed)
            shutil.rmtree(tmp_path / "runs")
    finish(tmp_path, two_colours)
    assert same(weights(tmp_path), undisturbed)


# The disk


def test_a_checkpoint_is_whole_or_is_not_and_the_one_before_is_kept(tmp_path):
    writer, path = WholeCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    for step in range(3):
        writer.save_checkpoint({"step": step}, path)
        assert torch.load(path, weights_only=True) == {"step": step}
    assert torch.load(path.with_name("previous.ckpt"), weights_only=True) == {"step": 1}
    assert sorted(found.name for found in path.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_without_hard_links_the_one_before_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(checkpoint_io.os, "link", refuse)
    writer, path = WholeCheckpointIO(), tmp_path / "last.ckpt"
    for step in range(2):
        writer.save_checkpoint({"step": step}, path)
    assert torch.load(path.with_name("previous.ckpt"), weights_only=True) == {"step": 0}


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


def test_a_full_disk_is_told_and_leaves_the_checkpoint_of_before(small_disk):
    writer, path = WholeCheckpointIO(), small_disk / "last.ckpt"
    writer.save_checkpoint({"weights": torch.ones(100_000)}, path)
    with pytest.raises(OSError, match=r"cannot write the checkpoint .*last\.ckpt: No space left on device\. The check"):
        writer.save_checkpoint({"weights": torch.ones(900_000)}, path)
    assert torch.load(path, weights_only=True)["weights"].sum() == 100_000
    assert [found.name for found in small_disk.iterdir()] == ["last.ckpt"]


def test_a_run_on_a_full_disk_ends_with_an_error_and_its_earlier_checkpoint(small_disk, two_colours):
    """The run's own pictures and logs fit; the checkpoint, of some megabytes, does not."""
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
    assert "No space left on device. There was none before" in error
    assert "Traceback" not in result.stderr
