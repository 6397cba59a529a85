"""Ablations of detectors: a removed part is gone, and all other parts work."""

import pytest
import torch

import detection
import mobile_former
from detection.models.ablation import ablate
from detection.module import DetectionModule
from mobile_former import InputError

LEARNS_FAST = {"focal": True, "refine_boxes": True, "dense_head": True, "choose_queries": True}
BACKBONE = ["no_bridge", "relu", "projected_bridge", "no_ffn", "tokens=1", "shared_dynamic_relu"]
HEAD = ["no_position_adaption", "scales=32", "scales=32+16"]
CASES = [("e2e_mf_26m", LEARNS_FAST, names) for names in (*BACKBONE, *HEAD)]
CASES += [("e2e_mf_26m", {}, names) for names in ("projected_bridge", *HEAD)]
CASES += [("retinanet_mf_26m", {}, names) for names in ("no_bridge", "relu")]
TARGETS = [{"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}] * 2


def ablated(name, names, options):
    torch.manual_seed(0)
    detector = detection.create_detector(name, 3, **options)
    ablate(detector, names)
    return detector


def padded_batch():
    mask = torch.zeros(2, 96, 96, dtype=torch.bool)
    mask[1, :, 64:] = True
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)), mask


@pytest.mark.parametrize(("name", "options", "names"), CASES)
def test_every_trained_parameter_gets_a_gradient_and_the_inference_form_predicts_the_same(name, options, names):
    detector = ablated(name, names, options)
    detector.loss(detector(*padded_batch()), TARGETS)["total"].backward()
    assert not [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    detector.eval()
    fast = mobile_former.deploy(detector)
    with torch.no_grad():
        outputs, expected = fast(*padded_batch()), detector(*padded_batch())
    torch.testing.assert_close(outputs["logits"], expected["logits"], rtol=1e-3, atol=1e-4)


def test_a_shared_dynamic_relu_is_not_spatially_aware_and_has_the_same_parameters():
    detector = ablated("e2e_mf_26m", "shared_dynamic_relu", {}).eval()
    assert not any(getattr(block, "spatial_dynamic_relu", False) for block in detector.backbone.blocks)
    published = detection.create_detector("e2e_mf_26m", 3)
    assert list(detector.state_dict()) == list(published.state_dict())


@pytest.mark.parametrize("options", [{}, LEARNS_FAST], ids=["published", "all options"])
def test_positions_keep_their_initial_values(options):
    positions = []
    detector = ablated("e2e_mf_26m", "no_position_adaption", options).eval()
    for block in detector.blocks:
        block.register_forward_pre_hook(lambda block, inputs: positions.append(inputs[2].clone()))
    detector(padded_batch()[0])
    assert len(positions) == len(detector.blocks)
    assert all(torch.equal(position, positions[0]) for position in positions)
    assert not any("adapt" in name for name in detector.state_dict())


@pytest.mark.parametrize(
    ("name", "names", "strides"),
    [
        ("e2e_mf_26m", "scales=32", [32] * 2),
        ("e2e_mf_26m", "scales=32+16", [16] * 2),
        ("e2e_mf_151m", "scales=32+16", [32] * 5 + [16] * 4),
    ],
)
def test_blocks_work_on_the_kept_scales(name, names, strides):
    detector = ablated(name, names, LEARNS_FAST)
    assert detector.strides == strides
    sizes = []
    for block in detector.blocks:
        block.register_forward_pre_hook(lambda block, inputs: sizes.append(inputs[0].shape[2]))
    outputs = detector(padded_batch()[0])
    assert sizes == [96 // stride for stride in strides]
    assert outputs["dense"]["logits"].shape[1] == sum((96 // scale) ** 2 for scale in detector.scales)


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("e2e_mf_26m", "scales=16", r"give 32 or 32\+16 or 32\+16\+8, from the coarsest to the finest"),
        ("e2e_mf_26m", "scales=32+16+8", "removes nothing from"),
        ("retinanet_mf_26m", "scales=32", "'scales=32' removes nothing from RetinaNet"),
        ("retinanet_mf_26m", "no_position_adaption", "removes nothing from RetinaNet"),
        ("e2e_mf_26m", "no_positions", "did you mean 'no_position_adaption'"),
    ],
)
def test_an_ablation_that_does_not_apply_is_an_error(name, names, message):
    with pytest.raises(InputError, match=message):
        ablated(name, names, {})


def test_a_classifiers_weights_are_refused_by_an_ablated_backbone(tmp_path):
    torch.save(mobile_former.mobile_former_26m().state_dict(), tmp_path / "published.pth")
    shared = ablated("e2e_mf_26m", "shared_dynamic_relu", {})
    detection.load_detector_weights(shared, tmp_path / "published.pth")  # no parameter is removed
    with pytest.raises(InputError, match="holds the published mobile_former_26m, not an ablated one"):
        detection.load_detector_weights(ablated("e2e_mf_26m", "no_ffn", {}), tmp_path / "published.pth")


def test_the_label_of_a_run_names_its_ablations_and_baselines_refuse_ablations():
    module = DetectionModule(["a", "b"], name="e2e_mf_26m", ablation="scales=32+16,relu")
    assert module.label == "e2e_mf_26m-scales=32+16-relu"
    assert "ablation" in module.architecture
    with pytest.raises(InputError, match=r"--model\.ablation is for Mobile-Former, not for transformers/resnet18"):
        DetectionModule(["a", "b"], name="retinanet_mf_26m", backbone="transformers/resnet18", ablation="relu")
