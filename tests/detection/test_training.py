"""Training to the promised scores. Takes minutes: `make test-slow`."""

import json

import pytest

from tests.conftest import run_module


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("e2e_mf_52m", (), {"AP": 0.50, "AP50": 0.80}),
        ("retinanet_mf_26m", ("--trainer.max_epochs", "5"), {"AP": 0.75, "AP50": 0.93}),
    ],
)
def test_digits_are_found_in_held_out_scenes(name, options, least, tmp_path):
    result = run_module("detection.fit", "--model.name", name, *options, cwd=tmp_path, timeout=2400)
    assert result.returncode == 0, result.stderr
    final = json.loads((tmp_path / "runs" / "detection" / f"{name}-scenes" / "metrics.json").read_text())
    for score, value in least.items():
        assert final[f"val/{score}"] >= value, final
