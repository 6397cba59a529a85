"""Training to the promised scores. Takes minutes: `make test-slow`."""

import json

import pytest

from tests.conftest import run_module


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_fit_alone_finds_digits_in_held_out_scenes(tmp_path):
    result = run_module("detection.fit", cwd=tmp_path, timeout=2400)
    assert result.returncode == 0, result.stderr
    final = json.loads((tmp_path / "runs" / "detection" / "e2e_mf_52m-scenes" / "metrics.json").read_text())
    assert final["val/AP"] >= 0.50
    assert final["val/AP50"] >= 0.80
