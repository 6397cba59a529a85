"""Training to the promised scores. Takes minutes: `make test-slow`."""

import json

import pytest

from tests.conftest import ROOT, run_module

SIGN_DIGITS = ROOT.parent / "shared" / "data" / "sign_digits"


def final(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fit_alone_reaches_98_percent_of_held_out_digits(tmp_path):
    result = run_module("classification.fit", cwd=tmp_path, timeout=1500)
    assert result.returncode == 0, result.stderr
    assert final(tmp_path / "runs" / "classification" / "mobile_former_26m-digits")["val/top1"] >= 0.98


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
    assert final(tmp_path / "runs" / "classification" / "mobile_former_26m-sign_digits")["val/top1"] >= 0.995
