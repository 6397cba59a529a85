import pytest

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
        assert set(strides) == {32, 16, 8}, name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("e2e_mf_295m", {}, "e2e_mf_294m"),
        ("e2e_mf_294m", {"num_classes": 0}, "at least 1"),
        ("retinanet_mf_26m", {"focal": True, "dense_head": True}, "takes no focal, dense_head"),
        ("detr_r50", {"backbone": "transformers/resnet18"}, "detr_r50 takes no other backbone"),
    ],
)
def test_an_unknown_name_and_options_of_other_detectors_are_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        detection.create_detector(name, **({"num_classes": 3} | options))
