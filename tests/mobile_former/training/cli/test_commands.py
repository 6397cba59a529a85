"""``python -m classification`` and ``python -m detection``."""

import importlib.util
import re

import pytest

from tests.conftest import run_module
from tests.test_start import run

EXPECTED = {
    "classification": {"fit", "validate", "test", "predict", "export", "shard", "publish", "digits"},
    "detection": {"fit", "validate", "test", "predict", "export", "scenes"},
}


@pytest.mark.parametrize("task", EXPECTED)
def test_the_commands_of_a_task_are_listed_with_a_line_each(task):
    status, loaded, output = run(task)
    assert status == 0
    assert "torch" not in loaded
    listed = dict(re.findall(r"^  (\w+) +(\S.+)$", output, re.MULTILINE))
    assert EXPECTED[task] <= listed.keys()
    assert list(listed)[:2] == ["fit", "validate"]
    assert max(map(len, output.splitlines()[:-1])) < 110
    for command in listed:
        assert importlib.util.find_spec(f"{task}.{command}")


def test_a_command_after_a_space_is_an_error_with_the_right_spelling(tmp_path):
    result = run_module("classification", "predct", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        "error: python -m classification predct: write python -m classification.COMMAND; did you mean predict?\n"
    )
