"""Printing and writing the detected objects of images."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.markup import escape
from rich.table import Column, Table

from detection.predict.detector import Detector
from mobile_former.training.console import console

_LISTED = 3  # detections per image in the printed table


def print_rows(predictions: Sequence[dict]) -> None:
    """Print a table with a row for each image: number of detections, and classes and scores of the best detections.

    ``predictions`` is a list of the dictionaries that :func:`detection.predict.detector.predict` yields.
    """
    table = Table(Column("image", overflow="fold"), "detections", Column("best", overflow="fold"))
    for prediction in predictions:
        place = prediction["path"] + (f" {prediction['seconds']:.2f} s" if "frame" in prediction else "")
        if "error" in prediction:
            row = (place, "unreadable", "")
        else:
            found = prediction["detections"]
            best = ", ".join(f"{detection['class']} {detection['score']:.3f}" for detection in found[:_LISTED])
            row = (place, str(len(found)), best)
        # Names may contain rich markup, and paths bytes that are not valid text.
        table.add_row(*(escape(cell.encode(errors="backslashreplace").decode()) for cell in row))
    console().print(table)


def print_summary(predictions: Sequence[dict]) -> None:
    """Print a table with a row for each detected class: number of objects, number of images, and mean score.

    The number of images counts the images with at least one object of the class. ``predictions`` is a list of the
    dictionaries that :func:`detection.predict.detector.predict` yields.
    """
    scores, images = defaultdict(list), Counter()
    for prediction in predictions:
        found = prediction.get("detections", ())
        images.update({detection["class"] for detection in found})
        for detection in found:
            scores[detection["class"]].append(detection["score"])
    table = Table("class", "objects", "in images", "mean score")
    for name, values in sorted(scores.items(), key=lambda item: -len(item[1])):
        table.add_row(escape(name), str(len(values)), str(images[name]), f"{np.mean(values):.3f}")
    if not scores:
        table.add_row("nothing found", "0", "0", "")
    console().print(table)


def write_file(detector: Detector, predictions: Sequence[dict], path: Path) -> None:
    """Write the predictions to a ``.json`` file in COCO's format, or to a ``.csv`` file.

    ``predictions`` is a list of the dictionaries that :func:`detection.predict.detector.predict` yields.
    """
    if path.suffix == ".json":
        _write_json(detector, predictions, path)
    else:
        _write_csv(predictions, path)


def _write_json(detector: Detector, predictions: Sequence[dict], path: Path) -> None:
    names, ids = detector.class_names, detector.category_ids
    images, annotations, errors = [], [], []
    for number, prediction in enumerate(predictions, start=1):
        if "error" in prediction:
            errors.append({"file_name": prediction["path"], "message": prediction["error"]})
            continue
        known = {name: prediction[name] for name in ("width", "height", "frame", "seconds") if name in prediction}
        images.append({"id": number, "file_name": prediction["path"], **known})
        for detection in prediction["detections"]:
            left, top, right, bottom = detection["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": ids[detection["label"]],
                    "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                    "area": round((right - left) * (bottom - top), 2),
                    "iscrowd": 0,
                    "score": round(detection["score"], 6),
                }
            )
    categories = [{"id": number, "name": name} for number, name in zip(ids, names, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    if errors:
        content["errors"] = errors
    # A path may contain bytes that are not valid text, which JSON escapes.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


def _write_csv(predictions: Sequence[dict], path: Path) -> None:
    place = ["path", *(["frame", "seconds"] if any("frame" in prediction for prediction in predictions) else [])]
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([*place, "class", "score", "left", "top", "right", "bottom", "error"])
        for prediction in predictions:
            placed = [prediction.get(name, "") for name in place]
            if "error" in prediction:
                writer.writerow([*placed, *[""] * 6, prediction["error"]])
                continue
            for detection in prediction["detections"]:
                box = (round(value, 2) for value in detection["box"])
                writer.writerow([*placed, detection["class"], round(detection["score"], 6), *box, ""])


def with_boxes(image: np.ndarray, prediction: dict) -> Image.Image:
    """Draw the detections of an image on a copy of the image ``(H, W, 3)`` uint8, and return the copy.

    ``prediction`` is a dictionary that :func:`detection.predict.detector.predict` yields.
    """
    from detection.pictures import caption, with_detections  # imports matplotlib

    detections = prediction["detections"]
    return with_detections(
        image,
        [detection["box"] for detection in detections],
        [detection["label"] for detection in detections],
        [caption(detection["class"], detection["score"]) for detection in detections],
        {detection["label"]: detection["class"] for detection in detections},
    )
