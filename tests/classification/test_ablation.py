"""``--model.ablation`` of the classifier: from training to prediction."""

import pytest

from classification.module import ClassificationModule
from mobile_former import InputError
from mobile_former.ablation import AttentionAlone
from mobile_former.training.run.checkpoint import load_checkpoint
from tests.conftest import run_module

CLASSES = ["a", "b", "c"]


def test_an_ablated_run_is_named_so_and_goes_on_with_the_same_ablation_alone():
    module = ClassificationModule(CLASSES, name="mobile_former_26m", ablation="no_ffn,tokens=2")
    assert module.label == "mobile_former_26m-no_ffn-tokens=2"
    assert "ablation" in module.architecture
    assert ClassificationModule(CLASSES, name="mobile_former_26m").label == "mobile_former_26m"


def test_baselines_refuse_ablations():
    with pytest.raises(InputError, match=r"--model\.ablation knows Mobile-Former, not transformers/resnet18"):
        ClassificationModule(CLASSES, name="transformers/resnet18", ablation="relu")


@pytest.mark.slow
def test_an_ablated_classifier_is_trained_scored_exported_and_predicts(image_folder, tmp_path):
    options = ("--model.name", "mobile_former_26m", "--model.ablation", "no_ffn", "--data.image_size", "32")
    short = ("--data.batch_size", "4", "--trainer.max_epochs", "1", "--data.num_workers", "0")
    data = ("--config", "finetune.yaml", "--data.root", str(image_folder))
    result = run_module("classification.fit", *data, *options, *short, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    checkpoint = tmp_path / "runs/classification/mobile_former_26m-no_ffn-colours/checkpoints/best.ckpt"
    module, _ = load_checkpoint(checkpoint, ClassificationModule, "classification")
    assert any(isinstance(part, AttentionAlone) for part in module.modules())
    other = (*options[:3], "relu", *options[4:], "--name", "mobile_former_26m-no_ffn-colours", "--ckpt_path", "last")
    result = run_module("classification.fit", *data, *other, *short, cwd=tmp_path)
    assert result.returncode == 1
    assert "was trained with ablation no_ffn, this run has relu" in result.stderr
    for command in (
        ("classification.validate", "--ckpt_path", str(checkpoint)),
        ("classification.predict", str(image_folder / "val"), "--ckpt_path", str(checkpoint)),
        ("classification.export", "--ckpt_path", str(checkpoint), "--output", "ablated.onnx", "--check_images", "4"),
    ):
        result = run_module(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
