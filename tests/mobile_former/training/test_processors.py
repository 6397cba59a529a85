"""The number of threads follows from the cores that a process may use."""

import os

import pytest
import torch

from mobile_former.training import processors
from mobile_former.training.processors import available_cores, cpu_quota, limit_threads


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def quota(tmp_path):
    """Read the quota for some files of a mounted hierarchy and the groups of a process."""

    def read(membership, files):
        for name, text in files.items():
            write(tmp_path / "cgroup" / name, text)
        write(tmp_path / "membership", membership)
        return cpu_quota(tmp_path / "cgroup", tmp_path / "membership")

    return read


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),  # the root of a machine
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, 4),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        ("0::/docker/1f\n", {"cpu.max": "300000 100000"}, 3),  # the path is the host's
        ("5:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("5:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("4:memory:/x\n3:cpuset:/\n", {"cpu.max": "100000 100000"}, None),
        ("0::/\n", {"cpu.max": "unreadable"}, None),
    ],
)
def test_the_quota_is_the_smallest_of_the_groups(quota, membership, files, expected):
    assert quota(membership, files) == expected


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (0.5, 1), (2.9, 2), (64.0, 4)])
def test_cores_are_limited_by_affinity_and_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 6}, raising=False)
    monkeypatch.setattr(processors, "cpu_quota", lambda: quota)
    assert available_cores() == cores


@pytest.mark.parametrize(
    ("given", "processes", "expected", "variable"),
    [(None, 1, 3, None), (None, 2, 1, "1"), (None, 5, 1, "1"), ("7", 2, 7, "7")],
)
def test_threads_share_the_cores_unless_the_user_sets_their_number(monkeypatch, given, processes, expected, variable):
    numbers = []
    monkeypatch.setattr(processors, "available_cores", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    limit_threads(processes)
    assert (numbers or [7]) == [expected]
    assert os.environ.get("OMP_NUM_THREADS") == variable
    os.environ.pop("OMP_NUM_THREADS", None)  # monkeypatch restores only what it has changed
