"""Run a classifier or detector on one image, and record the attention and, for E2E-MF, the boxes after each block."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from classification.predict import CheckpointClassifier, load_classifier
from detection.models.e2e_mf import E2EMobileFormer
from detection.pictures import caption
from detection.predict import CheckpointDetector, listed, load_detector
from experiments.attention.figures import best_queries
from experiments.attention.recording import BlockAttention, block_names, box_steps, recording
from mobile_former.weights.files import read_file

Predictor = CheckpointClassifier | CheckpointDetector

_TITLE_ENTRIES = 3  # classes or detections in a title


def load_predictor(path: str | Path) -> Predictor:
    """Load a checkpoint of the classification or detection task.

    Args:
        path: path of the ``.ckpt`` file.

    Returns:
        The predictor that the task's ``predict`` command uses, on the GPU if available.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a checkpoint of this project, or its model has no attention between map and tokens.
    """
    content = read_file(Path(path))
    options = content.get("hyper_parameters") if isinstance(content, dict) else None
    if isinstance(options, dict) and "category_ids" in options:
        predictor = load_detector(path, inference_form=False)
    else:
        predictor = load_classifier(path, inference_form=False)
    block_names(predictor.model)  # raises for a model without a bridge, before any image is read
    return predictor


@dataclass(frozen=True)
class Look:
    """Predictions of a model for one image, and the attention between feature map and tokens in each block.

    Both come from the same forward pass.

    Attributes:
        image: input of the model, ``(H, W, 3)`` uint8, without padding.
        answer: list of predictions, best first. For a classifier, the best classes as dictionaries with ``class`` and
            ``probability``. For a detector, all detections as dictionaries with ``label``, ``class``, ``score`` and
            ``box`` (xyxy in pixels of the original image).
        class_names: class names in the order of the labels.
        blocks: attention of each block, in forward order.
        steps: predictions after each block of E2E-MF's head, see :func:`box_steps`. Empty for other models.
        seconds: run time of the model in seconds.
    """

    image: np.ndarray
    answer: list[dict]
    class_names: list[str]
    blocks: list[BlockAttention]
    steps: list[dict[str, Tensor]]
    seconds: float

    def above(self, score_threshold: float = 0.3) -> list[dict]:
        """Return a list of the detections with a score (in [0, 1]) of at least ``score_threshold``.

        For a classifier, return the list of all predictions.
        """
        return [each for each in self.answer if each.get("score", 1) >= score_threshold]

    def told(self, score_threshold: float = 0.3) -> str:
        """Return a short text with the best predictions. Detections with a score below the threshold are left out."""
        answer = self.above(score_threshold)
        best = answer[:_TITLE_ENTRIES]
        captions = [caption(each["class"], each.get("score", each.get("probability"))) for each in best]
        others = len(answer) - _TITLE_ENTRIES if answer and "score" in answer[0] else 0
        return (", ".join(captions) or "nothing found") + (f" and {others} more" if others > 0 else "")

    def queries(self, score_threshold: float = 0.3) -> dict[int, str]:
        """Return a dictionary from the indices of E2E-MF's best queries to their captions.

        See :func:`best_queries`. For models other than E2E-MF, the dictionary is empty.
        """
        return best_queries(self.steps, self.class_names, score_threshold=score_threshold) if self.steps else {}


def look(predictor: Predictor, image: np.ndarray, *, top_k: int = 5) -> Look:
    """Run a model on one image, and return a :class:`Look` with the predictions and the attention.

    Args:
        predictor: output of :func:`load_predictor`. It contains the model and the transforms of the image.
        image: original image, ``(H, W, 3)`` uint8 RGB.
        top_k: maximum number of classes to return for a classifier.
    """
    model, names = predictor.model, predictor.class_names
    detects = isinstance(predictor, CheckpointDetector)
    prepared = predictor.transform(image)
    with recording(model) as record:
        start = time.perf_counter()
        if detects:
            (found,) = predictor.detect([prepared], [image.shape[:2]])
        else:
            best = predictor.logits([prepared])[0].softmax(0).topk(min(top_k, len(names)))
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
