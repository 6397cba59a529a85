"""``python -m experiments.loading``: the times of both sides."""

import re

from tests.conftest import run_module


def test_the_benchmark_reports_ratio_and_stages_of_both_recipes(tmp_path):
    result = run_module("experiments.loading", "--rounds", "1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"ours is \d\.\d\d .* times as fast", result.stdout)) == 2
    assert {"decode", "RandomResizedCrop", "RandomOrder", "Erasing", "normalise"} <= set(
        re.findall(r"[A-Za-z]+", result.stdout)
    )


def test_the_benchmark_names_a_folder_without_images(tmp_path):
    result = run_module("experiments.loading", "--folder", str(tmp_path), cwd=tmp_path)
    assert result.returncode != 0
    assert str(tmp_path) in result.stderr
