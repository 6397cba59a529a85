import math
import pickle

import pytest
import torch

import detection
import mobile_former
from detection.position_encoding import sine_encoding
from mobile_former import InputError


def detector(name="e2e_mf_26m", num_classes=5):
    torch.manual_seed(0)
    model = detection.create_detector(name, num_classes).eval()
    for parameter in model.parameters():  # far from the near-zero initialisation, where little depends on anything
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Parameters in millions and multiply-adds in thousand millions on one 800×1056 image: published for 508m as 36 % and
# 52 % less than DETR-R50's 41.4 M and 79.6 G, for the others as the expansions chosen give them.
@pytest.mark.parametrize(
    ("name", "params", "madds"),
    [
        ("e2e_mf_508m", 26.2, 38.9),
        ("e2e_mf_294m", 20.0, 23.1),
        ("e2e_mf_214m", 17.3, 16.8),
        ("e2e_mf_151m", 14.8, 11.6),
    ],
)
def test_cost_is_within_the_published_budget(name, params, madds):
    cost = mobile_former.cost(detection.create_detector(name, 91), image_size=(800, 1056))
    assert cost.params / 1e6 == pytest.approx(params, abs=0.1)
    assert cost.madds / 1e9 == pytest.approx(madds, abs=0.05)
    if name == "e2e_mf_508m":
        assert cost.params <= 26.4e6
        assert cost.madds <= 39.2e9


def test_outputs_have_the_promised_shapes_also_at_odd_sizes():
    outputs = detector()(images(2, 3, 65, 97))
    assert outputs["logits"].shape == (2, 50, 6)
    assert outputs["boxes"].shape == (2, 50, 4)
    assert len(outputs["auxiliary"]) == 8
    assert all(layer["boxes"].shape == (2, 50, 4) for layer in outputs["auxiliary"])
    assert 0 <= outputs["boxes"].min() <= outputs["boxes"].max() <= 1


def test_what_an_image_gets_does_not_depend_on_its_padding():
    model = detector().double()
    image = images(1, 3, 75, 90).double()
    batch = images(2, 3, 96, 128, seed=1).double() * 100
    batch[0, :, :75, :90] = image[0]
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[0, 75:] = True
    mask[0, :, 90:] = True
    alone_mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    alone_mask[0, 75:] = True
    alone_mask[0, :, 90:] = True
    alone_batch = torch.zeros(1, 3, 96, 96).double()
    alone_batch[0, :, :75, :90] = image[0]
    with torch.no_grad():
        alone = model(alone_batch, alone_mask)
        padded = model(batch, mask)
        refilled = model(batch.masked_fill(mask[:, None], -7.0), mask)
    torch.testing.assert_close(padded["boxes"][0], refilled["boxes"][0])
    torch.testing.assert_close(padded["logits"][0], alone["logits"][0])
    assert ((padded["boxes"][0] - alone["boxes"][0]).abs() * 90).max() < 1  # within a pixel


def test_every_parameter_learns_from_the_loss():
    model = detector().train()
    targets = [
        {"labels": torch.tensor([1, 4]), "boxes": torch.rand(2, 4)},
        {"labels": torch.empty(0).long(), "boxes": torch.empty(0, 4)},
    ]
    losses = model.loss(model(images(2, 3, 64, 64)), targets)
    losses["total"].backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # Nothing follows the last block's map, nor the position it would hand on.
    assert all(name.startswith(("blocks.8.mobile", "blocks.8.to_mobile", "blocks.8.adapt")) for name in without)


def test_detections_come_best_first_in_pixels_of_the_frame():
    model = detector()
    outputs = model(images(2, 3, 64, 64))
    detections = model.postprocess(outputs, [(100, 200), (50, 50)])
    for found, (height, width) in zip(detections, [(100, 200), (50, 50)], strict=True):
        assert (found["scores"].diff() <= 0).all()
        assert found["boxes"].shape == (50, 4)
        assert (found["boxes"] >= 0).all()
        assert found["boxes"][:, [0, 2]].max() <= width
        assert found["boxes"][:, [1, 3]].max() <= height
        assert found["labels"].max() < 5
    query = outputs["logits"][0].softmax(-1)[:, :5].max(1).values.argmax()
    cx, cy, w, h = outputs["boxes"][0, query].tolist()
    expected = [max(0, cx - w / 2) * 200, max(0, cy - h / 2) * 100, min(1, cx + w / 2) * 200, min(1, cy + h / 2) * 100]
    assert detections[0]["boxes"][0].tolist() == pytest.approx(expected, abs=1e-3)


def test_the_sine_encoding_is_detrs_and_spans_the_image_without_its_padding():
    padding = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    padding[..., 4:] = True
    encoding = sine_encoding(padding, 8)
    for row in range(4):
        for column in range(4):
            expected = []
            for place, extent in ((row, 4), (column, 4)):
                angles = [2 * math.pi * (place + 0.5) / extent / 10000 ** (k / 2) for k in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert encoding[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)


def test_pickles_and_names_the_nearest_detector():
    model = detector()
    x = images(1, 3, 64, 64)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x)["boxes"], model(x)["boxes"])
    with pytest.raises(InputError, match="e2e_mf_294m"):
        detection.create_detector("e2e_mf_295m", 3)
    with pytest.raises(InputError, match="at least 1"):
        detection.create_detector("e2e_mf_294m", 0)
