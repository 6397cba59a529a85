"""Idle threads wait passively while other processes are busy."""

import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from mobile_former.training.run import shared_cores
from mobile_former.training.run.shared_cores import CpuTimes, SharedCores, cpu_times
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


@pytest.fixture
def used(monkeypatch):
    """Processor time of other processes: a list of the cores used in each second, from which measurements are taken."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    state = {"clock": 100.0, "others": 50.0}

    def second(cores, *callbacks):
        state["clock"] += 1
        state["others"] += cores
        for callback in callbacks:
            callback.on_train_batch_end(None, nn.Identity(), None, None, 0)

    monkeypatch.setattr(shared_cores, "cpu_times", lambda: CpuTimes(state["clock"], state["others"]))
    monkeypatch.setattr(time, "monotonic", lambda: state["clock"])
    return second


def test_threads_wait_passively_while_others_use_more_than_the_free_cores(used):
    callback = SharedCores()
    found = []
    for cores in (0, 2.4, 2.6, 4, 2.2, 0, 3):
        used(cores, callback)
        found.append(callback.shares)
    assert found == [False, False, True, True, False, False, True]
    callback.teardown(None, nn.Identity(), "fit")
    assert not callback.shares


def test_nothing_is_measured_within_a_second(used, monkeypatch):
    callback = SharedCores()
    monkeypatch.setattr(shared_cores, "cpu_times", lambda: pytest.fail("measured"))
    callback.on_train_batch_end(None, nn.Identity(), None, None, 0)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_an_own_policy_and_a_single_thread_switch_it_off(used, monkeypatch, name):
    single = SharedCores()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    single = SharedCores()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv(name, "5")
    given = SharedCores()
    used(4, single, given)
    assert not single.shares
    assert not given.shares


def test_the_time_of_other_processes_is_measured_and_that_of_children_is_not():
    burn = "import time\nwhile time.process_time() < 1: pass\nprint(time.process_time())"
    before = cpu_times().others
    shell = f'{sys.executable} -c "{burn}" & echo $!'  # not a child: the shell has ended by then
    other = subprocess.run(["sh", "-c", shell], stdout=subprocess.PIPE, text=True)
    assert float(other.stdout.split()[-1]) >= 1  # its pipe is open until it has ended
    assert cpu_times().others - before > 0.9
    code = (
        "import multiprocessing, os, time\n"
        "from mobile_former.training.run.shared_cores import cpu_times\n"
        "def burn(seconds):\n"
        "    end = time.process_time() + seconds\n"
        "    while time.process_time() < end: pass\n"
        "own = lambda: cpu_times().others - sum(map(int, open('/proc/stat').readline().split()[1:4])) / 100\n"
        "before = own()\n"
        "child = multiprocessing.get_context('fork').Process(target=lambda: (burn(1), time.sleep(60)))\n"
        "child.start(); burn(1); time.sleep(1.5)\n"
        "running = own(); child.kill(); child.join()\n"
        "print(running - before, own() - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    running, ended = map(float, result.stdout.split())
    assert running < -1.8  # own time and that of the child are subtracted from the machine's
    assert ended < -1.8


def test_more_threads_than_cores_are_kept_and_ended():
    code = (
        "import os, time, torch\n"
        "from mobile_former.training.run.shared_cores import SharedCores\n"
        "torch.zeros(2**20).add_(1)\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "def wait_for(number):\n"
        "    end = time.monotonic() + 30\n"
        "    while count() != number and time.monotonic() < end: time.sleep(0.01)\n"
        "    return count()\n"
        "callback, first = SharedCores(), count()\n"
        "callback._set(True)\n"
        "print(callback.active, wait_for(first + 2) - first)\n"
        "callback._set(False)\n"
        "print(wait_for(first) - first)\n"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["True", "2", "0"]
