"""Parts of the graph of an exported detector: suppression and preprocessing in ONNX Runtime."""

import numpy as np
import pytest
import torch

from detection.boxes.nms import nms
from detection.data.batch import pad
from detection.export.onnx_graph import preparation, suppress, translations
from detection.transforms import eval_transform
from mobile_former.training.data.images import normalise, to_planes
from mobile_former.training.export.onnx_file import OnnxModel, write_onnx
from mobile_former.weights.usage import IMAGENET_MEAN, IMAGENET_STD

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

DETECTIONS = 70


class Suppression(torch.nn.Module):
    """The operation alone."""

    def forward(self, boxes, scores, labels):
        return torch.ops.detection.suppress(boxes, scores, labels, 4, DETECTIONS)


@pytest.fixture(scope="module")
def suppression(tmp_path_factory):
    """Non-maximum suppression as a file, of any number of images and candidates."""
    path = tmp_path_factory.mktemp("onnx") / "suppression.onnx"
    names = ["boxes", "scores", "labels"]
    axes = {0: "batch", 1: "candidates"}
    write_onnx(
        Suppression(),
        [torch.rand(2, 9, 4), torch.rand(2, 9), torch.zeros(2, 9, dtype=torch.long)],
        path,
        input_names=names,
        output_names=["order"],
        dynamic_axes=[axes] * 3,
        translations=translations(),
        metadata={"task": "detection"},
    )
    return OnnxModel(path, "detection")


def candidates(generator, count, *, levels, side=200.0):
    """Many overlapping boxes; whole numbers and few scores, so that ties and overlaps of exactly a half come up."""
    corners = torch.randint(0, int(side), (count, 2), generator=generator).float()
    sizes = torch.randint(0, 60, (count, 2), generator=generator).float()  # some without area
    boxes = torch.cat([corners, corners + sizes], dim=1)
    scores = torch.randint(1, levels + 1, (count,), generator=generator) / levels
    return boxes, scores, torch.randint(0, 4, (count,), generator=generator)


@pytest.mark.parametrize(("count", "levels"), [(1, 1), (30, 3), (400, 7), (3000, 20), (3000, 10**6)])
def test_suppression_in_the_graph_keeps_what_nms_keeps_in_its_order(suppression, count, levels):
    generator = torch.Generator().manual_seed(count + levels)
    batch = [candidates(generator, count, levels=levels) for _ in range(3)]
    boxes, scores, labels = map(torch.stack, zip(*batch, strict=True))
    scores[1, ::3] = 0  # no candidates
    scores[2] = 0
    order = suppression(boxes.numpy(), scores.numpy(), labels.numpy())["order"]
    for number in range(3):
        (valid,) = (scores[number] > 0).nonzero(as_tuple=True)
        kept = valid[nms(boxes[number][valid], scores[number][valid], labels[number][valid], 0.5)][:DETECTIONS]
        expected = kept.tolist() + [-1] * (DETECTIONS - len(kept))
        assert order[number].tolist() == expected
    assert suppress(boxes, scores, labels, 4, DETECTIONS).tolist() == order.tolist()


def test_boxes_without_area_suppress_each_other_as_in_nms(suppression):
    boxes = torch.tensor([[[0, 0, 0, 10], [20, 0, 20, 10], [0, 0, 10, 10], [5, 5, 5, 5], [0, 0, 10, 0]]]).float()
    scores, labels = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5]]), torch.tensor([[0, 1, 0, 1, 2]])
    order = suppression(boxes.numpy(), scores.numpy(), labels.numpy())["order"][0]
    assert order[:3].tolist() == [*nms(boxes[0], scores[0], labels[0], 0.5).tolist(), -1] == [0, 2, -1]


@pytest.mark.parametrize("frame", [None, (128, 160), (160, 96)])
def test_preparation_in_the_graph_is_that_of_evaluation(frame):
    text = preparation(96, 200, IMAGENET_MEAN, IMAGENET_STD, frame, None)
    session = onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString())
    generator = np.random.default_rng(0)
    transform = eval_transform(96, 200, frame)
    level = 1 / (255 * torch.tensor(IMAGENET_STD))[:, None, None]
    # The last three: at the limit of the longer side, one of them where a half is rounded to even; a strip.
    for height, width in (
        (96, 96),
        (97, 131),
        (40, 33),
        (250, 340),
        (300, 201),
        (128, 1),
        (40, 100),
        (101, 202),
        (2, 999),
    ):
        images = generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        found, sizes, frames = session.run(None, {"image": images})
        planes = [to_planes(transform(image=image, bboxes=np.zeros((0, 4)), labels=[])["image"]) for image in images]
        batch, mask = pad(planes, frame)
        assert found.shape == tuple(batch.shape)
        assert sizes.tolist() == [list(planes[0].shape[1:])] * 2
        assert frames.tolist() == [[height, width]] * 2
        expected = normalise(batch, IMAGENET_MEAN, IMAGENET_STD)
        content = torch.ones_like(batch[:, :1], dtype=torch.bool) if mask is None else ~mask[:, None]
        difference = ((torch.from_numpy(found) - expected).abs() / level) * content
        assert difference.max() < 2.5  # of 255: each axis may round to another level
        assert (difference > 0.5).float().mean() < 0.05
