"""One image seen by a classifier or detector: its answer, and the attention behind it."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from classification.module import ClassificationModule
from classification.predict import CheckpointClassifier
from detection.models.e2e_mf import E2EMobileFormer
from detection.module import DetectionModule
from detection.pictures import caption
from detection.predict import CheckpointDetector, listed
from experiments.attention.figures import best_queries
from experiments.attention.recording import (
    BlockAttention,
    block_names,
    box_steps,
    recording,
)
from mobile_former.training.data.images import to_planes
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.weights.files import read_file

_TOLD = 3  # classes or detections in a title
Predictor = CheckpointClassifier | CheckpointDetector


def load_predictor(path: str | Path) -> Predictor:
    """Read a checkpoint of either task.

    Args:
        path: the ``.ckpt`` file.

    Returns:
        What predicts as the task's ``predict`` does, on the GPU where there is one.

    Raises:
        FileNotFoundError: no such file.
        InputError: no checkpoint, or one of another library's model.
    """
    content = read_file(Path(path))
    options = content.get("hyper_parameters") if isinstance(content, dict) else None
    if isinstance(options, dict) and "category_ids" in options:
        predictor = CheckpointDetector(*load_checkpoint(path, DetectionModule, "detection"))
    else:
        predictor = CheckpointClassifier(*load_checkpoint(path, ClassificationModule, "classification"))
    block_names(predictor.module.model)  # an error now, rather than after the first image
    return predictor


@dataclass(frozen=True)
class Look:
    """One image seen by a model.

    Attributes:
        image: as the model saw it, ``(H, W, 3)`` uint8, without padding.
        answer: of a classifier the best classes, ``{"class", "probability"}``, of a detector all that it found,
            ``{"label", "class", "score", "box"}``, boxes xyxy in pixels of the whole image; best first.
        class_names: of the labels.
        blocks: the bridge's attention.
        steps: of E2E-MF, see :func:`box_steps`; of others empty.
        seconds: that the model took.
    """

    image: np.ndarray
    answer: list[dict]
    class_names: list[str]
    blocks: list[BlockAttention]
    steps: list[dict[str, Tensor]]
    seconds: float

    def above(self, score_threshold: float = 0.3) -> list[dict]:
        """Of a detector's answer what has a least score, in 0..1; a classifier's as it is."""
        return [each for each in self.answer if each.get("score", 1) >= score_threshold]

    def told(self, score_threshold: float = 0.3) -> str:
        """The answer in a few words; of a detector, what has a least score."""
        answer = self.above(score_threshold)
        captions = [caption(each["class"], each.get("score", each.get("probability"))) for each in answer[:_TOLD]]
        others = len(answer) - _TOLD if answer and "score" in answer[0] else 0
        return (", ".join(captions) or "nothing found") + (f" and {others} more" if others > 0 else "")

    def queries(self, score_threshold: float = 0.3) -> dict[int, str]:
        """The queries of E2E-MF to draw, see :func:`best_queries`; none of other models."""
        return best_queries(self.steps, self.class_names, score_threshold=score_threshold) if self.steps else {}


def look(predictor: Predictor, image: np.ndarray, *, top_k: int = 5) -> Look:
    """Predict one image, prepared as ``predict`` does it, and record the bridge's attention.

    Args:
        predictor: as :func:`load_predictor` gives it.
        image: ``(H, W, 3)`` uint8 RGB, as it was read.
        top_k: classes to tell, at most.
    """
    model, names = predictor.module.model, predictor.class_names
    detects = isinstance(predictor, CheckpointDetector)
    targets = {"bboxes": np.zeros((0, 4)), "labels": []} if detects else {}
    prepared = predictor.transform(image=image, **targets)["image"]
    planes = to_planes(prepared)
    with recording(model) as record:
        start = time.perf_counter()
        if detects:
            (found,) = predictor.detect([planes], [image.shape[:2]])
        else:
            best = predictor.logits([planes])[0].softmax(0).topk(min(top_k, len(names)))
            values, labels = best.values.tolist(), best.indices.tolist()
        seconds = time.perf_counter() - start
    if detects:
        answer = listed(found, names, 0)
    else:
        answer = [{"class": names[each], "probability": value} for each, value in zip(labels, values, strict=True)]
    steps = box_steps(model, record.outputs) if isinstance(model, E2EMobileFormer) else []
    # Whoever keeps many of them shall not fill a GPU with them.
    steps = [{name: value.cpu() for name, value in step.items()} for step in steps]
    return Look(prepared, answer, names, [block.cpu() for block in record.blocks], steps, seconds)
