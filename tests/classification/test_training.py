"""Training to the documented scores. It takes minutes: `make test-slow`."""

import json

import pytest

from tests.conftest import ROOT, run_module

SIGN_DIGITS = ROOT.parent / "shared" / "data" / "sign_digits"


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not SIGN_DIGITS.is_dir(), reason="needs the photographs of signed digits")
def test_finetune_from_scratch_reaches_99_5_percent_of_signed_digits(tmp_path):
    result = run_module(
        "classification.fit", "--config", "classification/configs/finetune.yaml", "--data.root", str(SIGN_DIGITS),
        "--model.name", "mobile_former_26m", "--data.image_size", "96", "--trainer.max_epochs", "30",
        cwd=tmp_path, timeout=2400,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / "classification" / "mobile_former_26m-sign_digits"
    assert json.loads((folder / "metrics.json").read_text())["val/top1"] >= 0.995
