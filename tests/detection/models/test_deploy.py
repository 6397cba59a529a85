"""Detectors in their inference form: the outputs of the trained detector, also for padded images and losses."""

import pytest
import torch

import detection
import mobile_former

DENSE = {"focal": True, "refine_boxes": True, "dense_head": True, "choose_queries": True}


def difference(actual, expected):
    """Return the largest difference between two nested structures of tensors, relative to the largest value of each."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        return max(difference(actual[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return max((difference(*pair) for pair in zip(actual, expected, strict=True)), default=0)
    if not isinstance(expected, torch.Tensor) or not expected.is_floating_point():
        assert torch.equal(torch.as_tensor(actual), torch.as_tensor(expected))
        return 0
    finite = expected.abs() < 1e30  # larger values represent minus infinity
    return ((actual - expected).abs()[finite].max() / expected.abs()[finite].max()).item()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("e2e_mf_26m", {}),
        ("e2e_mf_26m", DENSE),
        ("e2e_mf_151m", {}),
        ("retinanet_mf_26m", {}),
        ("retinanet_mf_52m", {"backbone": "transformers/resnet18"}),
    ],
)
def test_outputs_and_detections_are_the_same(name, options):
    torch.manual_seed(0)
    detector = detection.create_detector(name, 5, **options).double().eval()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(2)
            module.bias.data.normal_(0, 0.1)
    if name.startswith("retinanet"):
        detector.classify.bias.data.zero_()  # otherwise there are no detections
    deployed = mobile_former.deploy(detector)
    images = torch.randn(2, 3, 96, 128, dtype=torch.float64)
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[1, :, 70:] = True
    with torch.inference_mode():
        expected, outputs = detector(images, mask), deployed(images, mask)
        for layer in (expected, *expected.get("auxiliary", ())):
            layer.pop("one_to_many", None)  # only for training
        assert difference(outputs, expected) < 1e-12
        sizes = [(96, 128), (480, 350)]
        detections = detector.postprocess(expected, sizes)
        assert all(len(found["scores"]) for found in detections)
        assert difference(deployed.postprocess(outputs, sizes), detections) < 1e-9
