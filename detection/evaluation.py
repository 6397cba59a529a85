"""COCO average precision, computed by pycocotools."""

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_logger = logging.getLogger(__name__)

# In the order of pycocotools' summary. small, medium and large objects are separated by areas of 32² and 96² pixels.
# AR_1 and AR_10 count the best 1 and 10 detections per class and image, all other numbers the best ``max_detections``.
NUMBERS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR",
    "AR_small",
    "AR_medium",
    "AR_large",
)

SCORED_DETECTIONS = 100  # of each class in an image, that COCO's scores count


class ImageMatch(NamedTuple):
    """Right detections, false detections and missed objects of an image, see :meth:`CocoAP.match`."""

    image_id: int
    right: list[dict]  # detections of an object
    false: list[dict]  # detections without an object
    missed: list[dict]  # objects without a detection


class CocoAP(Metric):
    """Metric that computes the twelve COCO scores and the average precision (AP) of each class.

    pycocotools computes the scores from the detections in :meth:`results`. A score covers objects of one size or class.
    It is -1 if the evaluated images have no such objects. If an image is evaluated twice, for example by a distributed
    sampler, it counts once.

    Args:
        ground_truth: dictionary with the lists ``images``, ``annotations`` and ``categories``, in COCO format.
        category_ids: COCO category ids in the order of the labels.
        max_detections: maximum number of detections per class and image. If there are more, those with the lowest
            scores are ignored. COCO's own evaluation uses 100.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(
        self, ground_truth: dict[str, list[dict]], category_ids: Sequence[int], max_detections: int = SCORED_DETECTIONS
    ):
        super().__init__()
        self.max_detections = max_detections
        self.category_ids = np.array(category_ids)
        names = {category["id"]: category["name"] for category in ground_truth["categories"]}
        self.class_names = [names[category_id] for category_id in category_ids]
        # copies, because pycocotools modifies annotations
        self.ground_truth = _coco(ground_truth | {"annotations": [dict(row) for row in ground_truth["annotations"]]})
        for name in ("image_ids", "counts", "boxes", "scores", "labels"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, detections: Sequence[dict[str, Tensor]], image_ids: Sequence[int] | Tensor) -> None:
        """Add the detections of a batch of images to the set of detections to score.

        Args:
            detections: list with one dictionary for each image: ``boxes`` ``(n, 4)``, xyxy in pixels of the original
                image, ``scores`` ``(n,)`` in [0, 1], and ``labels`` ``(n,)``.
            image_ids: COCO ids of these images, in the same order.
        """
        if not len(detections):
            return
        self.image_ids.append(torch.as_tensor(image_ids, device=self.device))
        self.counts.append(torch.tensor([len(found["scores"]) for found in detections], device=self.device))
        self.boxes.append(torch.cat([found["boxes"].detach().reshape(-1, 4).float() for found in detections]))
        self.scores.append(torch.cat([found["scores"].detach().float() for found in detections]))
        self.labels.append(torch.cat([found["labels"] for found in detections]))

    def compute(self) -> dict[str, float | dict[str, float]]:
        """Return a dictionary from the name of each COCO score, such as ``"AP50"``, to its value.

        The additional key ``"per_class"`` holds a dictionary from class name to AP.
        """
        image_ids, rows = self._gathered()
        evaluation = COCOeval(self.ground_truth, _detections(rows, self.ground_truth), "bbox")
        evaluation.params.imgIds = image_ids
        evaluation.params.maxDets = [1, 10, self.max_detections]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        # (10 IoU thresholds, 101 recalls, K categories in the order of their ids, 4 sizes, 3 numbers of detections)
        precisions, recalls = evaluation.eval["precision"], evaluation.eval["recall"]
        precision = precisions[:, :, :, 0, -1]
        # pycocotools' own summary needs exactly 100 detections.
        values = [precision, precision[0], precision[5], *(precisions[:, :, :, size, -1] for size in (1, 2, 3))]
        values += [recalls[:, :, 0, count] for count in range(3)] + [recalls[:, :, size, -1] for size in (1, 2, 3)]
        order = np.searchsorted(evaluation.params.catIds, self.category_ids)
        per_class = (precision[:, :, position] for position in order)
        return dict(zip(NUMBERS, map(_mean, values), strict=True)) | {
            "per_class": dict(zip(self.class_names, map(_mean, per_class), strict=True))
        }

    def results(self) -> list[dict]:
        """Return the list of all detections in COCO results format, sorted by image id.

        Every process must call this method, because it gathers the detections from all processes.
        """
        with self.sync_context():
            return self._gathered()[1]

    def match(self, threshold: float) -> list[ImageMatch]:
        """Match detections with objects of the same class, image by image, at an IoU of at least 0.5.

        pycocotools matches them: the detection with the highest score chooses first. Detections of ignored objects,
        such as crowds, are left out. Every process must call this method.

        Args:
            threshold: minimum score of a detection.

        Returns:
            One entry for each evaluated image, sorted by image id.
        """
        with self.sync_context():
            image_ids, rows = self._gathered()
        found = _detections([row for row in rows if row["score"] >= threshold], self.ground_truth)
        evaluation = COCOeval(self.ground_truth, found, "bbox")
        parameters = evaluation.params
        parameters.iouThrs, parameters.areaRng, parameters.areaRngLbl = np.array([0.5]), [[0, 1e10]], ["all"]
        parameters.imgIds, parameters.maxDets = image_ids, [self.max_detections]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        matches = {image_id: ImageMatch(image_id, [], [], []) for image_id in image_ids}
        for part in filter(None, evaluation.evalImgs):  # of one class in one image
            match = matches[part["image_id"]]
            for number, other, ignored in zip(part["dtIds"], part["dtMatches"][0], part["dtIgnore"][0], strict=True):
                if not ignored:
                    (match.right if other else match.false).append(found.anns[number])
            for number, other, ignored in zip(part["gtIds"], part["gtMatches"][0], part["gtIgnore"], strict=True):
                if not (ignored or other):
                    match.missed.append(self.ground_truth.anns[number])
        return list(matches.values())

    def sync(self, *args, **kwargs) -> None:
        """Gather the detections from all processes. A process that evaluated no images contributes empty tensors."""
        self._begin()
        super().sync(*args, **kwargs)

    def _begin(self) -> None:
        if isinstance(self.image_ids, list) and not self.image_ids:
            none = torch.zeros(0, dtype=torch.long, device=self.device)
            self.image_ids, self.counts, self.labels = [none], [none], [none]
            self.boxes, self.scores = [torch.zeros((0, 4), device=self.device)], [none.float()]

    def _gathered(self) -> tuple[list[int], list[dict]]:
        """Return a tuple of two lists: the ids of all evaluated images, and the detections in these images.

        Each detection is a dictionary in COCO results format. An image that was evaluated twice occurs once. Detections
        with values that are not finite are left out, with a warning.
        """
        self._begin()
        image_ids, counts, boxes, scores, labels = (
            dim_zero_cat(getattr(self, name)).cpu().numpy()
            for name in ("image_ids", "counts", "boxes", "scores", "labels")
        )
        image_ids, counts, labels = (values.astype(np.int64) for values in (image_ids, counts, labels))
        image_ids, first = np.unique(image_ids, return_index=True)
        ends = np.cumsum(counts)
        chosen = np.concatenate([np.arange(ends[i] - counts[i], ends[i]) for i in first] or [[]]).astype(np.int64)
        image = np.repeat(image_ids, counts[first])
        boxes, scores = boxes[chosen].astype(np.float64), scores[chosen].astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        category = self.category_ids[labels[chosen]]
        # pycocotools would count an IoU of NaN as a perfect match.
        finite = np.isfinite(boxes).all(1) & np.isfinite(scores)
        if not finite.all():
            _logger.warning("%d detections are left out because their boxes or scores are not finite", (~finite).sum())
        columns = (column[finite].tolist() for column in (image, category, boxes, scores))
        return image_ids.tolist(), [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for image_id, category_id, box, score in zip(*columns, strict=True)
        ]


def _mean(values: np.ndarray) -> float:
    """Return the mean of all values except -1, pycocotools' mark for undefined. Return -1 if all are undefined."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _detections(rows: list[dict], ground_truth: COCO) -> COCO:
    """Build a pycocotools ``COCO`` object from a list of detections in COCO results format.

    pycocotools' own function ``loadRes`` is not used, because it rejects an empty list. ``ground_truth`` is the object
    with the images and categories of the detections.
    """
    annotations = [
        row | {"area": row["bbox"][2] * row["bbox"][3], "id": number, "iscrowd": 0}
        for number, row in enumerate(rows, start=1)
    ]
    return _coco(ground_truth.dataset | {"annotations": annotations})


def _coco(dataset: dict[str, list[dict]]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
