"""Printing and writing the predicted classes of images."""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.markup import escape
from rich.table import Table

from classification.predict.classifier import Classifier
from mobile_former.errors import InputError
from mobile_former.training.console import console
from mobile_former.training.prediction.inputs import as_input

_BELOW = 3  # classes below an image
SHEET_MOST = 60  # images; more would be too small to look at


def print_rows(predictions: Sequence[dict]) -> None:
    """Print a table with a row for each image: the best class, its probability, and the next two classes.

    ``predictions`` is a list of the dictionaries that :func:`classification.predict.classifier.predict` returns.
    """
    table = Table("image", "class", "probability", "next")
    for prediction in predictions:
        place = prediction["path"] + (f" {prediction['seconds']:.2f} s" if "frame" in prediction else "")
        if "error" in prediction:
            row = (place, "unreadable", "", "")
        else:
            others = ", ".join(f"{other['class']} {other['probability']:.3f}" for other in prediction["top_k"][1:3])
            row = (place, prediction["class"], f"{prediction['probability']:.3f}", others)
        table.add_row(*map(escape, row))  # rich would read square brackets in names as markup
    console().print(table)


def print_summary(predictions: Sequence[dict]) -> None:
    """Print a table with a row for each predicted class: number of images and mean probability.

    ``predictions`` is a list of the dictionaries that :func:`classification.predict.classifier.predict` returns.
    """
    found = defaultdict(list)
    for prediction in predictions:
        if "error" not in prediction:
            found[prediction["class"]].append(prediction["probability"])
    table = Table("class", "images", "mean probability")
    for name, values in sorted(found.items(), key=lambda item: -len(item[1])):
        table.add_row(escape(name), str(len(values)), f"{np.mean(values):.3f}")
    console().print(table)


def write_file(_: Classifier, predictions: Sequence[dict], path: Path) -> None:
    """Write the predictions to a ``.json`` or ``.csv`` file.

    ``predictions`` is a list of the dictionaries that :func:`classification.predict.classifier.predict` returns.
    """
    if path.suffix == ".json":
        path.write_text(json.dumps(predictions, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    ranks = range(1, 1 + max((len(prediction.get("top_k", ())) for prediction in predictions), default=0))
    columns = [f"{name}_{rank}" if rank > 1 else name for rank in ranks for name in ("class", "probability")]
    place = ["path", *(["frame", "seconds"] if any("frame" in prediction for prediction in predictions) else [])]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*place, *columns, "error"])
        for prediction in predictions:
            cells = [value for top in prediction.get("top_k", ()) for value in (top["class"], top["probability"])]
            cells += [""] * (len(columns) - len(cells))
            writer.writerow([*(prediction.get(name, "") for name in place), *cells, prediction.get("error", "")])


def draw_sheet(_: Classifier, predictions: Sequence[dict], path: Path) -> None:
    """Write a picture that shows up to 60 images with their best classes.

    Video frames and unreadable images are left out. ``predictions`` is a list of the dictionaries that
    :func:`classification.predict.classifier.predict` returns.

    Raises:
        InputError: none of the images could be read.
    """
    from mobile_former.training.run.figures import image_sheet  # imports matplotlib

    readable = [prediction for prediction in predictions if "error" not in prediction and "frame" not in prediction]
    shown = readable[:SHEET_MOST]
    if not shown:
        raise InputError(f"--sheet {path} is not written: none of the images could be read")
    image_sheet(
        [as_input(prediction["path"]).read() for prediction in shown],
        [
            f"{prediction['class']}  {prediction['probability']:.0%}\n{Path(prediction['path']).name}"
            for prediction in shown
        ],
        path,
        title=f"the first {len(shown)} of {len(readable)} images" if len(shown) < len(readable) else "",
    )


def with_classes(image: np.ndarray, prediction: dict) -> Image.Image:
    """Return a copy of an image ``(H, W, 3)`` uint8, with its best classes and their probabilities below it.

    ``prediction`` is a dictionary that :func:`classification.predict.classifier.predict` returns.
    """
    from matplotlib import get_data_path  # for its font only

    height, width = image.shape[:2]
    top = prediction["top_k"][:_BELOW]
    size = max(12, min(height, width) // 24)
    font = ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
    line = size * 3 // 2
    picture = Image.new("RGB", (width, height + line * len(top)), "white")
    picture.paste(Image.fromarray(image))
    pen = ImageDraw.Draw(picture)
    for number, each in enumerate(top):
        text = f"{each['probability']:.0%}  {each['class']}"
        pen.text((size // 2, height + line * number + line / 2), text, "black", font, anchor="lm")
    return picture
