"""Show at which stage an E2E-MF detector gains or loses average precision (AP).

    python -m experiments.diagnosis --ckpt_path runs/detection/NAME/checkpoints/best.ckpt

The checkpoint is of an E2E-MF detector with ``choose_queries``: its object queries start from the best positions of the
dense head. The command prints three tables for the validation images of the run, or for those of ``--data.root``:

- the AP of the dense head, of the positions chosen from it, and of the predictions after each block;
- the AP if one kind of error is corrected, with the help of the annotations;
- how well the boxes of the queries cover the objects.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer
from rich.table import Table
from torch import Tensor

from detection.boxes.geometry import cxcywh_to_xyxy, iou
from detection.boxes.nms import nms
from detection.boxes.postprocess import best_classes, to_pixels
from detection.data.module import require_annotations
from detection.evaluate import labelled_data
from detection.evaluation import CocoAP
from detection.losses.matcher import Pairs
from detection.models.e2e_mf import E2EMobileFormer, distinct_positions
from detection.models.retinanet import DETECTIONS, NMS_THRESHOLD, best_candidates
from detection.module import DetectionModule
from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.console import console
from mobile_former.training.run.checkpoint import load_checkpoint

SCORES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
COVERAGE = (
    "objects with IoU > 0.5",
    "objects with IoU > 0.75",
    "mean best IoU",
    "mean IoU of matched queries",
    "matched queries with the right class",
    "correlation of score and IoU",
    "queries with IoU > 0.5 per image",
    "their objects per image",
)

_NMS = "non-maximum suppression"


def main() -> None:
    """Parse the command line, run the detector on the validation images, and print the tables."""
    parser = Parser(prog="python -m experiments.diagnosis", description="Show where E2E-MF loses average precision.")
    parser.add_argument("--ckpt_path", type=Path, required=True, help="checkpoints/best.ckpt of a run of detection.fit")
    parser.add_argument(
        "--data.root", type=str | None, default=None, help="COCO folder; default: the data of the training run"
    )
    options = parser.parse_args()
    module, data_options = load_checkpoint(options.ckpt_path, DetectionModule, "detection")
    if not isinstance(module.model, E2EMobileFormer) or not module.model.start.choose_queries:
        raise InputError(f"{options.ckpt_path} holds {module.label}: give an E2E-MF detector with choose_queries")
    data = labelled_data(data_options, options.data)
    data.class_names = module.hparams.class_names
    data.setup("validate")
    require_annotations(data.val_set.source, "the diagnosis needs it")
    diagnosis = Diagnosis(lambda: module.metric(data.val_set.source))
    trainer = Trainer(
        devices=1, callbacks=[diagnosis], logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.validate(module, data, verbose=False)
    for table in diagnosis.tables():
        console().print(table)


class Diagnosis(Callback):
    """Callback that measures the predictions of an E2E-MF detector at several stages during a validation.

    Args:
        metric: function that returns a new COCO metric for the evaluated images.
    """

    def __init__(self, metric: Callable[[], CocoAP]):
        self._stages: defaultdict[str, CocoAP] = defaultdict(metric)
        self._corrected: defaultdict[str, CocoAP] = defaultdict(metric)
        self._objects: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._queries: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._images = 0

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: DetectionModule, outputs: None, batch: dict, batch_idx: int
    ) -> None:
        """Run the detector on the batch once more, and add its predictions to the measurements."""
        model = pl_module.model
        self.update(model, model(batch["image"], batch["padding_mask"]), batch)

    def update(self, model: E2EMobileFormer, outputs: dict, batch: dict) -> None:
        """Add the predictions for a batch of images.

        Args:
            model: the detector.
            outputs: output of the detector's ``forward`` method for the batch.
            batch: batch of the data module.
        """
        sizes, ids, targets = batch["image_sizes"].tolist(), batch["image_ids"], batch["targets"]
        self._images += len(targets)
        layers = [chosen_positions(outputs["dense"], model.max_detections), *outputs["auxiliary"], outputs]
        names = ["chosen positions", *(f"after block {number}" for number in range(1, len(layers)))]
        matched = model.criterion.matcher.match_layers(layers, targets)

        self._stages[f"dense head, {_NMS}"].update(dense_detections(outputs["dense"], sizes), ids)
        for name, layer, pairs in zip(names, layers, matched, strict=True):
            scores = model.probabilities(layer["logits"])
            detections = to_pixels(best_classes(scores, layer["boxes"]), sizes)
            self._stages[name].update(detections, ids)
            for image, target in enumerate(targets):
                objects, queries = coverage(scores[image], layer["boxes"][image], pairs[image], target)
                self._objects[name].append(objects)
                self._queries[name].append(queries)
        self._stages[f"{names[-1]}, {_NMS}"].update([suppress(found) for found in detections], ids)
        for name, (probabilities, boxes) in corrections(scores, layer["boxes"], matched[-1], targets).items():
            self._corrected[name].update(to_pixels(best_classes(probabilities, boxes), sizes), ids)

    def tables(self) -> list[Table]:
        """Return a list of three tables: AP by stage, AP after corrections, and coverage of the objects by boxes."""
        stages = Table("detections", *SCORES, title="Average precision by stage")
        for name, metric in self._stages.items():
            stages.add_row(name, *_scores(metric))
        corrected = Table("corrected in the result", *SCORES, title="Average precision with corrections")
        for name, metric in self._corrected.items():
            corrected.add_row(name, *_scores(metric))
        covered = Table("boxes", *COVERAGE, title="Queries and objects")
        for name, rows in self._objects.items():
            objects, queries = torch.cat(rows), torch.cat(self._queries[name])
            best, matched = objects[:, 0], queries[queries[:, 1] > 0]
            near = queries[:, 0] > 0.5
            covered.add_row(
                name,
                f"{(best > 0.5).float().mean():.3f}",
                f"{(best > 0.75).float().mean():.3f}",
                f"{best.mean():.3f}",
                f"{matched[:, 0].mean():.3f}",
                f"{matched[:, 2].mean():.3f}",
                f"{torch.corrcoef(matched[:, [0, 3]].T)[0, 1]:.2f}",
                f"{near.sum() / self._images:.1f}",
                f"{(best > 0.5).sum() / self._images:.1f}",
            )
        return [stages, corrected, covered]


def chosen_positions(dense: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the predictions of the dense head at the positions from which the queries start.

    Args:
        dense: output of :class:`detection.models.dense_head.DenseHead` with P positions.
        count: number of queries.

    Returns:
        A dictionary with ``logits`` ``(B, Q, K)`` and ``boxes`` ``(B, Q, 4)``, cxcywh, clipped to 0..1. Q is the
        smaller one of ``count`` and P.
    """
    best = distinct_positions(dense, count)
    return {
        name: dense[name].gather(1, best.expand(-1, -1, dense[name].shape[2])).float() for name in ("logits", "boxes")
    }


def dense_detections(dense: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """Return the detections of the dense head after non-maximum suppression.

    Args:
        dense: output of :class:`detection.models.dense_head.DenseHead`.
        image_sizes: list with a tuple (height, width) for each image.

    Returns:
        List with one dictionary for each image, see :func:`detection.boxes.postprocess.to_pixels`.
    """
    candidates = best_candidates(dense["logits"], dense["boxes"], [dense["logits"].shape[1]])
    candidates["boxes"] = cxcywh_to_xyxy(candidates["boxes"]).clamp(0, 1)
    return [suppress(found) for found in to_pixels(candidates, image_sizes)]


def suppress(detections: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply non-maximum suppression to a dictionary of one image's detections. At most 100 remain."""
    kept = nms(detections["boxes"], detections["scores"], detections["labels"], NMS_THRESHOLD)[:DETECTIONS]
    return {name: values[kept] for name, values in detections.items()}


def coverage(
    scores: Tensor, boxes: Tensor, pairs: tuple[Tensor, Tensor], target: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Compare the boxes of the queries with the objects of an image.

    Args:
        scores: class probabilities ``(Q, K)``.
        boxes: ``(Q, 4)``, cxcywh, normalised to 0..1.
        pairs: tuple of the indices of the matched queries and the indices of their objects.
        target: ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``, cxcywh, normalised to 0..1.

    Returns:
        A tuple of two tensors. The first tensor is ``(n, 1)``: the highest IoU of each object with the box of a query.
        The second tensor ``(Q, 4)`` has a row for each query, with four columns:

        - IoU of the query's box with its matched object or, without a match, the highest IoU with any object;
        - 1 if the query is matched, else 0;
        - 1 if the query's best class is the class of its matched object, else 0;
        - highest class probability of the query.
    """
    if len(target["labels"]) == 0:
        return boxes.new_zeros(0, 1), torch.stack([*boxes.new_zeros(3, len(boxes)), scores.amax(1)], dim=1)
    overlaps = iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(target["boxes"].to(boxes)))  # (Q, n)
    queries, objects = pairs
    overlap, matched, right = overlaps.amax(1), boxes.new_zeros(len(boxes)), boxes.new_zeros(len(boxes))
    overlap[queries] = overlaps[queries, objects]
    matched[queries] = 1
    right[queries] = (scores[queries].argmax(1) == target["labels"][objects]).to(right)
    return overlaps.amax(0)[:, None], torch.stack([overlap, matched, right, scores.amax(1)], dim=1)


def corrections(
    scores: Tensor, boxes: Tensor, matched: Pairs, targets: Sequence[dict[str, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Correct the predictions of the queries with the help of the annotations, one kind of error at a time.

    Args:
        scores: class probabilities ``(B, Q, K)``.
        boxes: ``(B, Q, 4)``, cxcywh, normalised to 0..1.
        matched: list with one tuple (indices of the matched queries, indices of their objects) for each image.
        targets: list with one dictionary for each image: ``labels`` ``(n,)`` and ``boxes`` ``(n, 4)``, cxcywh,
            normalised to 0..1.

    Returns:
        Dictionary from the name of a correction, such as "boxes of matched queries", to the tuple (``scores``,
        ``boxes``) after this correction.
    """
    single, classes, exact = torch.zeros_like(scores), scores.clone(), boxes.clone()
    for image, ((queries, objects), target) in enumerate(zip(matched, targets, strict=True)):
        best = scores[image, queries].amax(1)
        single[image, queries] = scores[image, queries]
        classes[image, queries] = 0
        classes[image, queries, target["labels"][objects]] = best
        exact[image, queries] = target["boxes"][objects].to(exact)
    return {
        "nothing": (scores, boxes),
        "unmatched queries left out": (single, boxes),
        "classes of matched queries": (classes, boxes),
        "boxes of matched queries": (scores, exact),
        "classes and boxes of matched queries": (classes, exact),
    }


def _scores(metric: CocoAP) -> list[str]:
    scores = metric.compute()
    return [f"{scores[name]:.3f}" for name in SCORES]


if __name__ == "__main__":
    run_command(main)
