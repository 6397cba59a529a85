import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from mobile_former.training.run import lock
from mobile_former.training.run.folder import RunFolder
from mobile_former.training.run.lock import LOCK, InUseError, lock_folder, release_folder
from tests.conftest import ROOT


def hold(folder, body="time.sleep(60)", before="pass"):
    """Start a process that locks a folder, and return it when it has the lock."""
    program = f"""
        import os, sys, time
        from pathlib import Path
        from mobile_former.training.run import lock
        {before}
        lock.lock_folder(Path({str(folder)!r}))
        print("locked", flush=True)
        {body}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of the folder ``task/x``."""
    folder = tmp_path / "task" / "x"
    folder.mkdir(parents=True)
    # A forked process, such as one that loads images, lives on for a moment when the lock's process is killed.
    process = hold(folder, "time.sleep(60 if os.fork() else 8)")
    yield process
    process.kill()
    process.wait()  # its pipes stay open in the forked process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_is_locked_until_its_process_ends(tmp_path, other, end):
    folder = tmp_path / "task" / "x"
    (folder / "config.yaml").write_text("")
    for state in ("running", "suspended"):
        with pytest.raises(InUseError, match=rf"task/x is in use by process {other.pid} on .*another --name"):
            RunFolder.restart(tmp_path, "task", "x")
        assert (folder / "config.yaml").is_file(), state
        other.send_signal(signal.SIGSTOP)
    assert RunFolder.create(tmp_path, "task", "x").path.name == "x-2"
    for number in (end, signal.SIGCONT):
        other.send_signal(number)
    other.wait()
    start = time.monotonic()
    assert RunFolder.restart(tmp_path, "task", "x").path == folder
    assert time.monotonic() - start < 5, "a lock of this machine needs no watching"
    assert not (folder / "config.yaml").exists()


def test_a_process_that_ends_normally_leaves_no_lock(tmp_path):
    process = hold(tmp_path, "pass")
    assert process.wait() == 0
    assert not any(tmp_path.iterdir())
    process.communicate()


@pytest.mark.slow
def test_of_processes_that_start_at_the_same_time_one_gets_the_folder(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from mobile_former.training.run.folder import RunFolder\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(RunFolder.restart(Path(sys.argv[1]), 'task', 'x').path.name, flush=True); time.sleep(2)"
    )
    command, environment = [sys.executable, "-c", program, str(tmp_path)], os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(3)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate() for process in processes]
    assert sorted(output for output, _ in outputs) == ["", "", "x\n"]
    assert sum("is in use by process" in error for _, error in outputs) == 2


# On a shared disk, a lock may not reach the other machines


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The file of a lock that a process on another machine has signed."""
    monkeypatch.setattr(lock, "GRACE", 1)
    path = tmp_path / LOCK
    path.write_text(json.dumps({"host": "node7", "pid": 12, "machine": "other"}))
    yield path
    release_folder(tmp_path)


@pytest.mark.parametrize("locks", [True, False])
def test_a_process_on_another_machine_holds_the_lock_while_it_touches_its_file(elsewhere, locks, monkeypatch):
    if not locks:
        monkeypatch.setattr(lock, "fcntl", None)
    alive = threading.Event()

    def touch():
        while not alive.wait(0.2):
            os.utime(elsewhere)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(InUseError, match="in use by process 12 on node7"):
            lock_folder(elsewhere.parent)
    finally:
        alive.set()
        thread.join()
    lock_folder(elsewhere.parent)  # it is dead
    assert json.loads(elsewhere.read_text())["pid"] == os.getpid()


def test_a_process_whose_lock_was_taken_over_on_another_machine_stops(tmp_path):
    process = hold(tmp_path, before="lock.HEARTBEAT = 0.2")
    time.sleep(1)
    assert process.poll() is None
    (tmp_path / LOCK).write_text(json.dumps({"host": "node7", "pid": 12, "machine": "other"}))
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error.startswith("error: the run folder ")
    assert "in use by process 12 on node7" in error
    assert (tmp_path / LOCK).is_file(), "the lock is no longer its own"
