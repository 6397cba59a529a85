import pytest
import torch

import detection
from detection.models.variants import E2E_VARIANTS
from mobile_former import InputError


def test_detectors_are_listed_from_small_to_large():
    names = detection.list_detectors()
    sizes = ("26m", "52m", "151m", "214m", "294m", "508m")
    assert names == [f"{kind}_{size}" for kind in ("e2e_mf", "retinanet_mf") for size in sizes] + ["detr_r50"]


def test_the_blocks_of_e2e_mf_go_from_the_coarsest_scale_to_the_finest():
    for name, variant in E2E_VARIANTS.items():
        strides = [stride for stride, _ in variant.blocks]
        assert strides == sorted(strides, reverse=True), name
        assert set(strides) <= {32, 16, 8}, name
        assert strides[-1] == 8, name  # queries sample the finest map in their boxes


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("e2e_mf_295m", {}, "e2e_mf_294m"),
        ("e2e_mf_294m", {"num_classes": 0}, "at least 1"),
        ("retinanet_mf_26m", {"focal": True, "dense_head": True}, "takes no focal, dense_head"),
        ("detr_r50", {"backbone": "transformers/resnet18"}, "detr_r50 takes no backbone"),
        ("retinanet_mf_26m", {"num_queries": 300}, "retinanet_mf_26m takes no num_queries"),
        ("e2e_mf_26m", {"max_detections": 300}, "e2e_mf_26m takes no max_detections"),
        ("detr_r50", {"num_queries": 0}, "num_queries is 0"),
    ],
)
def test_an_unknown_name_and_options_of_other_detectors_are_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        detection.create_detector(name, **({"num_classes": 3} | options))


@pytest.mark.parametrize("name", ["e2e_mf_26m", "detr_r50", "retinanet_mf_26m"])
def test_the_number_of_detections_is_an_option(name):
    option = "max_detections" if name.startswith("retinanet") else "num_queries"
    default = {"e2e_mf_26m": 50}.get(name, 100)
    assert detection.create_detector(name, num_classes=3).max_detections == default
    detector = detection.create_detector(name, num_classes=3, **{option: 130}).eval()
    assert detector.max_detections == 130
    with torch.inference_mode():
        outputs = detector(torch.zeros(1, 3, 128, 128))
        if name.startswith("retinanet"):
            outputs["logits"] = torch.full_like(outputs["logits"], 3)  # many detections
        (found,) = detector.postprocess(outputs, [(128, 128)])
    assert len(found["scores"]) == 130
