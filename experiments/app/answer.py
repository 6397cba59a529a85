"""A model's answer to one image file: its predictions as pictures and as values for the page."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from detection.pictures import caption, with_detections
from experiments.attention.figures import draw_boxes, draw_bridge
from experiments.attention.look import Look, Predictor, look
from mobile_former.training.data.images import ImageError, read_image, resize

BOXES = "boxes"  # a choice next to the names of the blocks: show E2E-MF's boxes after each block
LONGEST = 1024  # pixels of the image's longer side on the page


@dataclass(frozen=True)
class Answer:
    """A model's answer to one image file.

    Attributes:
        problem: why the image cannot be read; empty if it was read.
        image: the image, ``(H, W, 3)`` uint8, with at most 1024 pixels on the longer side; None if unreadable.
        size: width and height in pixels of the image in the file.
        prediction: the model's prediction and the bridge's attention; None if the image is unreadable.
    """

    problem: str = ""
    image: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    prediction: Look | None = None

    def picture(self, score_threshold: float = 0.3) -> Image.Image:
        """Return the image with the detections drawn into it. The image of a classifier stays unchanged."""
        found = [each for each in self.prediction.above(score_threshold) if "box" in each]
        scale = self.image.shape[1] / self.size[0]
        return with_detections(
            self.image,
            [[scale * value for value in each["box"]] for each in found],
            [each["label"] for each in found],
            [caption(each["class"], each["score"]) for each in found],
        )

    def rows(self, score_threshold: float = 0.3) -> list[list]:
        """Return one row per detection: class, score, left, top, right and bottom, in pixels of the file's image."""
        found = self.prediction.above(score_threshold)
        return [[each["class"], round(each["score"], 3), *(round(value) for value in each["box"])] for each in found]

    def probabilities(self) -> dict[str, float]:
        """Return the probabilities of a classifier's best classes, by class name."""
        return {each["class"]: each["probability"] for each in self.prediction.answer}

    def attention(self, block: str, score_threshold: float = 0.3) -> Image.Image:
        """Draw the bridge's attention in a block, or E2E-MF's boxes after each block if ``block`` is "boxes"."""
        prediction = self.prediction
        title = prediction.told(score_threshold)
        if block == BOXES:
            figure = draw_boxes(
                prediction.image, prediction.steps, prediction.class_names,
                score_threshold=score_threshold, title=title,
            )  # fmt: skip
        else:
            chosen = [each for each in prediction.blocks if each.name == block]
            queries = prediction.queries(score_threshold)
            figure = draw_bridge(prediction.image, chosen, queries=queries, title=title)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def answer(predictor: Predictor, path: str | Path) -> Answer:
    """Return the predictions for an image file. If it cannot be read, the answer has only ``problem``."""
    try:
        image = read_image(path)
    except (ImageError, FileNotFoundError) as error:
        # Hide the server's folders: name only the file.
        return Answer(problem=str(error).replace(str(path), Path(path).name))
    height, width = image.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    small = resize(image, max(1, round(scale * height)), max(1, round(scale * width)))
    return Answer(image=small, size=(width, height), prediction=look(predictor, image))
