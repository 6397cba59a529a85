"""Training to the promised scores. Takes minutes: `make test-slow`. E2E-MF's stand in the test of `make demo`."""

import json

import pytest

from tests.conftest import run_module


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_retinanet_finds_digits_in_held_out_scenes(tmp_path):
    options = ("--model.name", "retinanet_mf_26m", "--trainer.max_epochs", "5")
    result = run_module("detection.fit", *options, cwd=tmp_path, timeout=2400)
    assert result.returncode == 0, result.stderr
    final = json.loads((tmp_path / "runs" / "detection" / "retinanet_mf_26m-scenes" / "metrics.json").read_text())
    assert final["val/AP"] >= 0.75
    assert final["val/AP50"] >= 0.93
