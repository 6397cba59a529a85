"""Predict one image with a checkpoint of either task; also record the bridge's attention and E2E-MF's boxes."""

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
from experiments.attention.recording import BlockAttention, block_names, box_steps, recording
from mobile_former.training.data.images import to_planes
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.weights.files import read_file

Predictor = CheckpointClassifier | CheckpointDetector

_TITLE_ENTRIES = 3  # classes or detections in a title


def load_predictor(path: str | Path) -> Predictor:
    """Load a checkpoint of classification or detection.

    Args:
        path: the ``.ckpt`` file.

    Returns:
        The predictor that the task's ``predict`` command uses, on the GPU if available.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a checkpoint of this project, or its model has no bridge.
    """
    content = read_file(Path(path))
    options = content.get("hyper_parameters") if isinstance(content, dict) else None
    if isinstance(options, dict) and "category_ids" in options:
        predictor = CheckpointDetector(*load_checkpoint(path, DetectionModule, "detection"))
    else:
        predictor = CheckpointClassifier(*load_checkpoint(path, ClassificationModule, "classification"))
    block_names(predictor.module.model)  # raises for a model without a bridge, before any image is read
    return predictor


@dataclass(frozen=True)
class Look:
    """Predictions of a model for one image, and the attention that was recorded meanwhile.

    Attributes:
        image: input of the model, ``(H, W, 3)`` uint8, without padding.
        answer: predictions, best first. Classifier: the best classes, ``{"class", "probability"}``. Detector: every
            detection, ``{"label", "class", "score", "box"}``, boxes xyxy in pixels of the original image.
        class_names: class name of each label.
        blocks: attention of each block's bridge.
        steps: predictions after each block of E2E-MF's head, see :func:`box_steps`; empty for other models.
        seconds: run time of the model.
    """

    image: np.ndarray
    answer: list[dict]
    class_names: list[str]
    blocks: list[BlockAttention]
    steps: list[dict[str, Tensor]]
    seconds: float

    def above(self, score_threshold: float = 0.3) -> list[dict]:
        """Return the detections that reach a score threshold in [0, 1]. For a classifier, return all of ``answer``."""
        return [each for each in self.answer if each.get("score", 1) >= score_threshold]

    def told(self, score_threshold: float = 0.3) -> str:
        """Return a short text with the best predictions. Detections below the score threshold are left out."""
        answer = self.above(score_threshold)
        best = answer[:_TITLE_ENTRIES]
        captions = [caption(each["class"], each.get("score", each.get("probability"))) for each in best]
        others = len(answer) - _TITLE_ENTRIES if answer and "score" in answer[0] else 0
        return (", ".join(captions) or "nothing found") + (f" and {others} more" if others > 0 else "")

    def queries(self, score_threshold: float = 0.3) -> dict[int, str]:
        """Choose E2E-MF's queries to draw, and return their captions, see :func:`best_queries`. Other models: {}."""
        return best_queries(self.steps, self.class_names, score_threshold=score_threshold) if self.steps else {}


def look(predictor: Predictor, image: np.ndarray, *, top_k: int = 5) -> Look:
    """Predict one image and record the bridge's attention.

    Args:
        predictor: output of :func:`load_predictor`. The predictor's transform prepares the image.
        image: original image, ``(H, W, 3)`` uint8 RGB.
        top_k: maximum number of classes in a classifier's answer.
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
    # On the CPU, so that a list of results does not fill the GPU.
    steps = [{name: value.cpu() for name, value in step.items()} for step in steps]
    return Look(prepared, answer, names, [block.cpu() for block in record.blocks], steps, seconds)
