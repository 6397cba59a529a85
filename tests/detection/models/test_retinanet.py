import math

import pytest
import torch

import detection
import mobile_former
from detection.models.retinanet import best_candidates


def test_candidates_are_the_best_1000_pairs_of_anchor_and_class_on_each_map():
    logits = torch.randn(2, 700, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.rand(2, 700, 4, generator=torch.Generator().manual_seed(1))
    candidates = best_candidates(logits, boxes, [600, 100])
    assert candidates["scores"].shape == (2, 1000 + 200)
    for image in range(2):
        expected = []
        for anchors, count in ((range(600), 1000), (range(600, 700), 200)):
            pairs = [(logits[image, a, k].sigmoid().item(), a, k) for a in anchors for k in range(2)]
            expected += sorted(pairs, reverse=True)[:count]
        scores = [score if score > 0.05 else 0 for score, _, _ in expected]
        assert candidates["scores"][image].tolist() == pytest.approx(scores)
        assert candidates["labels"][image].tolist() == [label for _, _, label in expected]
        assert torch.equal(candidates["boxes"][image], boxes[image, [anchor for _, anchor, _ in expected]])


def test_detections_are_decoded_suppressed_and_scaled_to_the_image():
    model = detection.create_detector("retinanet_mf_26m", 2)
    outputs = {
        "logits": torch.tensor([[[3.0, -9], [2, -9], [-9, 1], [-4, -4]]]),
        "offsets": torch.zeros(1, 4, 4),
        "anchors": torch.tensor([[50.0, 40, 20, 20], [50, 40, 22, 20], [20, 20, 10, 10], [80, 60, 8, 8]]),
        "padding": torch.zeros(1, 4, dtype=torch.bool),
        "extent": torch.tensor([[100.0, 80.0]]),
        "levels": [4],
    }
    (found,) = model.postprocess(outputs, [(160, 200)])
    assert found["labels"].tolist() == [0, 1]  # the second overlaps the first, the last scores too low
    assert found["scores"].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-1))])
    torch.testing.assert_close(found["boxes"], torch.tensor([[80.0, 60, 120, 100], [30, 30, 50, 50]]))


# Published parameters in millions and multiply-adds in billions. Ours may be up to 2.5 % and 5 % lower.
@pytest.mark.parametrize(
    ("name", "params", "madds"),
    [
        ("retinanet_mf_508m", 17.9, 168),
        ("retinanet_mf_294m", 16.1, 164),
        ("retinanet_mf_214m", 15.2, 162),
        ("retinanet_mf_151m", 14.4, 161),
    ],
)
def test_the_cost_is_close_to_the_published_one(name, params, madds):
    cost = mobile_former.cost(detection.create_detector(name, 80), (800, 1280))
    assert cost.params / 1e6 == pytest.approx(params, rel=0.025)
    assert 0.95 * madds <= cost.madds / 1e9 <= madds


def test_the_outputs_of_an_image_do_not_depend_on_its_padding():
    torch.manual_seed(0)
    model = detection.create_detector("retinanet_mf_26m", 3).eval().double()
    for parameter in model.parameters():
        if parameter.ndim == 4 and parameter.shape[2] == 3 and parameter.shape[1] > 8:
            torch.nn.init.normal_(parameter, std=(9 * parameter.shape[1]) ** -0.5)
    image = torch.randn(3, 75, 90).double()
    batch = torch.randn(2, 3, 160, 192).double() * 50
    mask = torch.ones(2, 160, 192, dtype=torch.bool)
    batch[0, :, :75, :90] = image
    mask[0, :75, :90] = mask[1] = False
    single_image = torch.zeros(1, 3, 96, 96).double()
    single_image[0, :, :75, :90] = image
    with torch.no_grad():
        padded, single = model(batch, mask), model(single_image, mask[:1, :96, :96])
    for name in ("logits", "offsets"):
        torch.testing.assert_close(padded[name][0][~padded["padding"][0]], single[name][0][~single["padding"][0]])
    assert torch.equal(padded["extent"][0], torch.tensor([90.0, 75.0]))


def test_every_parameter_gets_a_gradient_with_and_without_objects():
    model = detection.create_detector("retinanet_mf_26m", 3).train()
    for objects in (2, 0):
        model.zero_grad()
        target = {"labels": torch.arange(objects), "boxes": torch.rand(objects, 4) * 0.5 + 0.2}
        model.loss(model(torch.randn(2, 3, 64, 64)), [target] * 2)["total"].backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.slow
def test_an_exported_program_takes_images_of_any_size():
    """Sizes and batches with a single position or image are a case of their own in torch.export."""
    torch.manual_seed(0)
    model = mobile_former.deploy(detection.create_detector("retinanet_mf_26m", 3).eval())
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (torch.randn(2, 3, 192, 224),), dynamic_shapes=(sizes,)).module()
    for shape in ((2, 3, 160, 420), (3, 3, 333, 150)):
        images = torch.randn(shape)
        with torch.no_grad():
            found, expected = program(images), model(images)
        assert found["levels"] == expected["levels"]
        for name in ("logits", "offsets", "anchors", "extent"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
