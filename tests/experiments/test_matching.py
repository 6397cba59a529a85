"""``python -m experiments.matching``: the share of matching in a training step."""

import re

from tests.conftest import run_module


def test_the_benchmark_prints_the_share_of_matching_in_a_step(tmp_path):
    options = ("--name", "e2e_mf_26m", "--size", "64", "96", "--steps", "2", "--objects", "5")
    result = run_module("experiments.matching", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    share = float(re.search(r"matching ([\d.]+)% of it", result.stdout)[1])
    assert 0 < share < 100
    assert "2 layers, 5 objects per image" in result.stdout
