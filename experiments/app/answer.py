"""The response of the app to one image file: pictures and values for the page."""

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
    """Response to one image file: the predictions of the model, or the reason why the file cannot be read.

    Attributes:
        problem: error message if the image cannot be read, otherwise an empty string.
        image: image ``(H, W, 3)`` uint8, with at most 1024 pixels on the longer side. None if the file cannot be read.
        size: width and height in pixels of the image in the file.
        prediction: predictions and attention of the model. None if the image cannot be read.
    """

    problem: str = ""
    image: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    prediction: Look | None = None

    def picture(self, score_threshold: float = 0.3) -> Image.Image:
        """Return a picture of the image with its detections. For a classifier, nothing is drawn on the image.

        Detections with a score below the threshold are left out.
        """
        found = [each for each in self.prediction.above(score_threshold) if "box" in each]
        scale = self.image.shape[1] / self.size[0]
        return with_detections(
            self.image,
            [[scale * value for value in each["box"]] for each in found],
            [each["label"] for each in found],
            [caption(each["class"], each["score"]) for each in found],
            {each["label"]: each["class"] for each in found},
        )

    def rows(self, score_threshold: float = 0.3) -> list[list]:
        """Return a list of one row per detection: class, score, left, top, right and bottom.

        Detections with a score below the threshold are left out. Positions are in pixels of the original image file.
        """
        found = self.prediction.above(score_threshold)
        return [[each["class"], round(each["score"], 3), *(round(value) for value in each["box"])] for each in found]

    def probabilities(self) -> dict[str, float]:
        """Return a classifier's best classes, as a dictionary from class name to probability in 0..1."""
        return {each["class"]: each["probability"] for each in self.prediction.answer}

    def attention(self, block: str, score_threshold: float = 0.3) -> Image.Image:
        """Return a picture of the attention between feature map and tokens in one block.

        Args:
            block: name of the block, or "boxes" for a picture of the boxes that E2E-MF predicts after each block.
            score_threshold: minimum score of the detections in the picture, in [0, 1].
        """
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
    """Run the model on an image file, and return an :class:`Answer`.

    If the file cannot be read, the answer contains only the error message, in its attribute ``problem``.
    """
    try:
        image = read_image(path)
    except (ImageError, FileNotFoundError) as error:
        # Hide the server's folders: name only the file.
        return Answer(problem=str(error).replace(str(path), Path(path).name))
    height, width = image.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    small = resize(image, max(1, round(scale * height)), max(1, round(scale * width)))
    return Answer(image=small, size=(width, height), prediction=look(predictor, image))
