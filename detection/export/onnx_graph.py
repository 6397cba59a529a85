"""Build the ONNX graph of a detector and of its preprocessing, with standard ONNX operators only."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detection.boxes.geometry import xyxy_to_cxcywh
from detection.boxes.nms import nms
from detection.data.batch import MULTIPLE
from detection.models.retinanet import NMS_THRESHOLD, RetinaNet, best_candidates
from mobile_former.training.export.onnx_file import OPSET

RAW_OUTPUTS = ("logits", "boxes")
DECODED_OUTPUTS = ("boxes", "scores", "labels", "counts")


class DetectionGraph(nn.Module):
    """Wrapper of a detector for the export. All of its inputs and outputs are tensors.

    Args:
        model: detector in evaluation mode.
        decode: whether to return detections. If False, return raw logits and boxes.
    """

    def __init__(self, model: nn.Module, *, decode: bool):
        super().__init__()
        self.model = model
        self.decode = decode

    def forward(self, images: Tensor, sizes: Tensor, frames: Tensor | None = None) -> tuple[Tensor, ...]:
        """Detect objects in a batch of images.

        Args:
            images: normalised images ``(B, 3, H, W)``, padded on the right and below. H and W are multiples of 32.
            sizes: ``(B, 2)`` long, height and width in pixels of each image without its padding.
            frames: ``(B, 2)`` long, output height and width of each image. Detected boxes are scaled to this size.
                Default: ``sizes``.

        Returns:
            If ``decode`` is True, a tuple of four tensors, named by ``DECODED_OUTPUTS``:

            - ``boxes``: ``(B, N, 4)``, xyxy in pixels of ``frames``, clipped to the image;
            - ``scores``: ``(B, N)`` in [0, 1], best first;
            - ``labels``: ``(B, N)`` long;
            - ``counts``: ``(B,)`` long, number of detections of each image.

            N is the detector's ``max_detections``. If an image has fewer detections, the remaining entries have score 0
            and label -1.

            If ``decode`` is False, a tuple of two tensors, named by ``RAW_OUTPUTS``:

            - ``logits``: ``(B, N, K)`` for K classes, or ``(B, N, K+1)`` if the last class is "no object";
            - ``boxes``: ``(B, N, 4)``, cxcywh, normalised to [0, 1] by the size of the image without padding.

            Here N is the number of queries, or of anchors for RetinaNet. Anchors on padding have the lowest finite
            logits.
        """
        height, width = images.shape[2:]
        rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        below, beside = rows >= sizes[:, :1], columns >= sizes[:, 1:]
        outputs = self.model(images, torch.logical_or(below[:, :, None], beside[:, None]))
        frames = sizes if frames is None else frames
        corners = frames.flip(1).repeat(1, 2)[:, None].float()  # (B, 1, 4): width, height, width, height
        if isinstance(self.model, RetinaNet):
            return self._anchors(outputs, corners)
        if not self.decode:
            return outputs["logits"], outputs["boxes"]
        found = self.model.decode(outputs)
        counts = torch.full_like(found["labels"][:, 0], 1) * found["labels"].shape[1]
        return found["boxes"] * corners, found["scores"], found["labels"], counts

    def _anchors(self, outputs: dict, corners: Tensor) -> tuple[Tensor, ...]:
        logits, boxes = self.model.decode(outputs)
        extent = outputs["extent"].repeat(1, 2)[:, None]
        if not self.decode:
            return logits, xyxy_to_cxcywh(boxes / extent)
        candidates = best_candidates(logits, boxes, outputs["levels"])
        boxes, scores, labels = candidates["boxes"], candidates["scores"], candidates["labels"]
        order = torch.ops.detection.suppress(boxes, scores, labels, self.model.num_classes, self.model.max_detections)
        found = order >= 0
        order = order.clamp(min=0)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)) / extent * corners
        return (
            boxes.masked_fill(~found[..., None], 0),
            scores.gather(1, order).masked_fill(~found, 0),
            labels.gather(1, order).masked_fill(~found, -1),
            found.sum(1),
        )


@torch.library.custom_op("detection::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, max_detections: int) -> Tensor:
    """Apply non-maximum suppression to each image of a batch.

    This function is a custom PyTorch operator, so that the ONNX exporter can translate it as a whole.

    Args:
        boxes: ``(B, N, 4)``, xyxy in pixels, not negative.
        scores: ``(B, N)``. Entries with score 0 are ignored.
        labels: ``(B, N)`` long. Boxes suppress only boxes with the same label.
        num_classes: number of classes K.
        max_detections: maximum number of boxes M that are kept in an image.

    Returns:
        ``(B, M)`` long: indices of the boxes that are kept, best first. Unused entries at the end are -1.
    """
    order = labels.new_full((boxes.shape[0], max_detections), -1)
    for image in range(len(boxes)):
        (valid,) = (scores[image] > 0).nonzero(as_tuple=True)
        kept = nms(boxes[image][valid], scores[image][valid], labels[image][valid], NMS_THRESHOLD)[:max_detections]
        order[image, : len(kept)] = valid[kept]
    return order


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, max_detections: int) -> Tensor:
    return labels.new_empty((boxes.shape[0], max_detections))


def translations() -> dict[Callable, Callable]:
    """Return a dictionary from PyTorch operators to functions that translate them to ONNX.

    The operators are :func:`suppress` and the stable sort. The package onnxscript must be installed.
    """
    from onnxscript import opset20 as op

    def number(value: float, kind: type = int):
        return op.Constant(value_int=value) if kind is int else op.Constant(value_float=value)

    def numbers(*values: int):
        return op.Constant(value_ints=list(values))

    # boxes, scores and labels are unannotated, because onnxscript reads annotations as ONNX types.
    def translated(boxes, scores, labels, num_classes: int, max_detections: int):
        # OpenCV, which nms() uses, treats all boxes without area as overlapping, of any class, and keeps one of them.
        # ONNX keeps them all, so all but the best are given score 0 first.
        first, second = op.Split(boxes, num_outputs=2, axis=2)
        shortest = op.ReduceMin(op.Sub(second, first), numbers(2), keepdims=0)
        flat = op.LessOrEqual(shortest, number(0.0, float))
        best_flat = op.ArgMax(op.Where(flat, scores, number(0.0, float)), axis=1, keepdims=1)
        length = op.Squeeze(op.Shape(scores, start=1, end=2))
        worse = op.And(flat, op.Not(op.Equal(op.Range(number(0), length, number(1)), best_flat)))
        scores = op.Where(worse, number(0.0, float), scores)
        # (B, K, N): each candidate has its score in its own class and 0 in the others.
        classes = op.Unsqueeze(op.Range(number(0), number(num_classes), number(1)), numbers(0, 2))
        own = op.Equal(op.Unsqueeze(labels, numbers(1)), classes)
        class_scores = op.Where(own, op.Unsqueeze(scores, numbers(1)), number(0.0, float))
        # (n, 3): image, class and candidate. The best of each class include the best of the image.
        # Limits are vectors of one value: tract refuses scalars.
        limits = numbers(max_detections), op.Constant(value_floats=[NMS_THRESHOLD]), op.Constant(value_floats=[0.0])
        kept = op.NonMaxSuppression(boxes, class_scores, *limits)
        places = op.Gather(kept, numbers(0, 2), axis=1)
        kept_scores = op.ScatterND(op.Mul(scores, number(0.0, float)), places, op.GatherND(scores, places))
        # Padded by zeros, so that TopK always has enough. Among equal scores TopK and nms() take the first.
        padded = op.Pad(kept_scores, numbers(0, 0, 0, max_detections))
        best, order = op.TopK(padded, numbers(max_detections), axis=1)
        return op.Where(op.Greater(best, number(0.0, float)), order, number(-1))

    def sort(values, *, stable, dim: int, descending: bool):
        """Translate a stable sort to ONNX's TopK, which returns equal values in their original order."""
        return op.TopK(values, op.Shape(values, start=dim, end=dim + 1), axis=dim, largest=int(descending))

    return {torch.ops.detection.suppress.default: translated, torch.ops.aten.sort.stable: sort}


def preparation(
    short_side: int,
    longest: int,
    mean: Sequence[float],
    std: Sequence[float],
    frame: tuple[int, int] | None,
    batch_size: int | None,
) -> str:
    """Return the preprocessing for :class:`DetectionGraph` as an ONNX model in text format.

    Args:
        short_side: length of the shorter side in pixels, after resizing.
        longest: maximum length of the longer side in pixels, after resizing.
        mean: mean of each channel, for pixel values in [0, 1].
        std: standard deviation of each channel, for pixel values in [0, 1].
        frame: fixed height and width of the detector's input in pixels. None: any.
        batch_size: fixed number of images. None: any.

    Returns:
        Text of an ONNX model that resizes images as :func:`detection.transforms.eval_transform` does, and then
        normalises and pads them. The input of the model is ``image`` ``(B, H, W, 3)``, uint8 RGB. The outputs
        ``prepared_images``, ``prepared_sizes`` and ``prepared_frames`` are the three inputs of
        :meth:`DetectionGraph.forward`.
    """
    if frame is None:
        height, width = "prepared_height", "prepared_width"
        fit = f"""
            prepare_size = Identity (prepare_resized)
            prepare_multiple = Constant <value_ints = [{MULTIPLE}]> ()
            prepare_less = Constant <value_ints = [{MULTIPLE - 1}]> ()
            prepare_more = Add (prepare_size, prepare_less)
            prepare_cells = Div (prepare_more, prepare_multiple)
            prepare_place = Mul (prepare_cells, prepare_multiple)"""
    else:
        height, width = frame
        # As in resized(), for results that do not fit the frame
        fit = f"""
            prepare_place = Constant <value_ints = [{height}, {width}]> ()
            prepare_height, prepare_width = Split <num_outputs = 2> (prepare_resized)
            prepare_place_height, prepare_place_width = Split <num_outputs = 2> (prepare_place)
            prepare_across = Mul (prepare_height, prepare_place_width)
            prepare_down = Mul (prepare_width, prepare_place_height)
            prepare_narrower = Div (prepare_down, prepare_height)
            prepare_lower = Div (prepare_across, prepare_width)
            prepare_some_narrower = Max (prepare_narrower, prepare_one)
            prepare_some_lower = Max (prepare_lower, prepare_one)
            prepare_full_height = Concat <axis = 0> (prepare_place_height, prepare_some_narrower)
            prepare_full_width = Concat <axis = 0> (prepare_some_lower, prepare_place_width)
            prepare_tall = Greater (prepare_across, prepare_down)
            prepare_fitted = Where (prepare_tall, prepare_full_height, prepare_full_width)
            prepare_beyond = Sub (prepare_resized, prepare_place)
            prepare_most_beyond = ReduceMax <keepdims = 1> (prepare_beyond)
            prepare_zero = Constant <value_ints = [0]> ()
            prepare_too_large = Greater (prepare_most_beyond, prepare_zero)
            prepare_size = Where (prepare_too_large, prepare_fitted, prepare_resized)"""
    scale = ", ".join(repr(1 / (255 * value)) for value in std)
    offset = ", ".join(repr(-centre / value) for centre, value in zip(mean, std, strict=True))
    # Resize on bytes rounds after each axis, like PyTorch and Pillow. A few pixels differ from theirs by 1 of 255.
    batch = batch_size or "batch"
    return f"""<ir_version: 10, opset_import: ["" : {OPSET}]>
        prepare (uint8[{batch}, height, width, 3] image) => (
            float[{batch}, 3, {height}, {width}] prepared_images,
            int64[{batch}, 2] prepared_sizes,
            int64[{batch}, 2] prepared_frames
        ) {{
            prepare_one = Constant <value_ints = [1]> ()
            prepare_shape = Shape <start = 1, end = 3> (image)
            prepare_shorter = ReduceMin <keepdims = 1> (prepare_shape)
            prepare_longer = ReduceMax <keepdims = 1> (prepare_shape)
            prepare_short_side = Constant <value_ints = [{short_side}]> ()
            prepare_longest = Constant <value_ints = [{longest}]> ()
            prepare_area = Mul (prepare_longest, prepare_shorter)
            prepare_double_area = Cast <to = 11> (prepare_area)
            prepare_double_longer = Cast <to = 11> (prepare_longer)
            prepare_ratio = Div (prepare_double_area, prepare_double_longer)
            prepare_rounded = Round (prepare_ratio)
            prepare_limit = Cast <to = 7> (prepare_rounded)
            prepare_some = Max (prepare_limit, prepare_one)
            prepare_side = Min (prepare_some, prepare_short_side)
            prepare_product = Mul (prepare_side, prepare_longer)
            prepare_proportional = Div (prepare_product, prepare_shorter)
            prepare_other = Min (prepare_proportional, prepare_longest)
            prepare_wide = Concat <axis = 0> (prepare_side, prepare_other)
            prepare_high = Concat <axis = 0> (prepare_other, prepare_side)
            prepare_image_height, prepare_image_width = Split <num_outputs = 2> (prepare_shape)
            prepare_is_high = Greater (prepare_image_height, prepare_image_width)
            prepare_resized = Where (prepare_is_high, prepare_high, prepare_wide)
            {fit}
            prepare_planes = Transpose <perm = [0, 3, 1, 2]> (image)
            prepare_planes_shape = Shape <start = 0, end = 2> (prepare_planes)
            prepare_sizes = Concat <axis = 0> (prepare_planes_shape, prepare_size)
            prepare_pixels = Resize <mode = "linear", antialias = 1, exclude_outside = 1> (
                prepare_planes, , , prepare_sizes
            )
            prepare_values = Cast <to = 1> (prepare_pixels)
            prepare_scale = Constant <value = float[3, 1, 1] {{{scale}}}> ()
            prepare_offset = Constant <value = float[3, 1, 1] {{{offset}}}> ()
            prepare_scaled = Mul (prepare_values, prepare_scale)
            prepare_normalised = Add (prepare_scaled, prepare_offset)
            prepare_missing = Sub (prepare_place, prepare_size)
            prepare_none = Constant <value_ints = [0, 0, 0, 0, 0, 0]> ()
            prepare_pads = Concat <axis = 0> (prepare_none, prepare_missing)
            prepared_images = Pad (prepare_normalised, prepare_pads)
            prepare_batch = Shape <start = 0, end = 1> (image)
            prepare_two = Constant <value_ints = [2]> ()
            prepare_rows = Concat <axis = 0> (prepare_batch, prepare_two)
            prepared_sizes = Expand (prepare_size, prepare_rows)
            prepared_frames = Expand (prepare_shape, prepare_rows)
        }}"""
