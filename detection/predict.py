"""``python -m detection.predict``: detect objects in image files."""

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table
from torch import Tensor
from torch.utils.data import DataLoader

from detection.export.exported_detector import ExportedDetector
from detection.module import DetectionModule
from detection.pictures import caption, draw_detections
from detection.transforms import eval_transform
from mobile_former.errors import InputError
from mobile_former.training.cli.command import exit_if_unreadable, require_writable, run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.cli.prediction import add_predict_options, check_predict_options
from mobile_former.training.console import console
from mobile_former.training.data.images import ImageFiles, expand, read_image
from mobile_former.training.data.module import default_workers
from mobile_former.training.export.onnx_file import OnnxModel
from mobile_former.training.run.checkpoint import load_checkpoint

_LISTED = 3  # detections per image in the printed table
_PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})  # images whose drawings keep their file names


def main() -> None:
    """Parse the command line, detect objects in images, and print the detections.

    If requested, also write the detections to a file, and write pictures of the images with boxes to a folder.
    """
    parser = Parser(prog="python -m detection.predict", description="Detect objects in images.")
    add_predict_options(parser, "detection", output="a .json (COCO results) or .csv file to write", batch_size=8)
    parser.add_argument(
        "--drawings", type=Path | None, default=None, help="folder for pictures of the images with their boxes"
    )
    parser.add_argument("--score_threshold", type=float, default=0.3, help="minimum score of a detection, 0 to 1")
    options = parser.parse_args()
    check_predict_options(options, (".json", ".csv"))
    if not 0 <= options.score_threshold <= 1:
        raise InputError(f"--score_threshold is {options.score_threshold}: give a score from 0 to 1")

    paths = expand(options.images)
    drawings = _drawing_paths(paths, options.drawings) if options.drawings else []
    for target in filter(None, (options.output, *drawings)):  # before any work, so that no result is lost
        require_writable(target)
    if options.onnx:
        detector: Detector = ExportedDetector(OnnxModel(options.onnx, "detection"))
    else:
        detector = CheckpointDetector(*load_checkpoint(options.ckpt_path, DetectionModule, "detection"))
    found = predict(detector, paths, score_threshold=options.score_threshold, batch_size=options.batch_size)
    predictions = []
    terminal = Console(stderr=True)
    for prediction in track(
        found,
        "detecting",
        total=len(paths),
        console=terminal,
        transient=True,
        disable=not terminal.is_terminal or len(paths) <= options.batch_size,
    ):
        if drawings and "error" not in prediction:
            _draw(prediction, drawings[len(predictions)])
        predictions.append(prediction)

    _print(predictions)
    if options.output:
        if options.output.suffix == ".json":
            _write_json(predictions, detector, options.output)
        else:
            _write_csv(predictions, options.output)
        print(f"written: {options.output}")
    failed = [prediction["error"] for prediction in predictions if "error" in prediction]
    if drawings:
        print(f"written: {len(predictions) - len(failed)} pictures in {options.drawings}/")
    exit_if_unreadable(failed, len(paths))


class Detector(Protocol):
    """Interface of a detector that :func:`predict` can run. The detector comes from a checkpoint or an ONNX file.

    Attributes:
        class_names: class names in the order of the labels.
        category_ids: COCO category ids in the order of the labels.
        transform: function that prepares an image ``(H, W, 3)`` uint8 for :meth:`detect`. It is called like an
            albumentations pipeline: ``transform(image=image, bboxes=np.zeros((0, 4)), labels=[])["image"]``.
    """

    class_names: list[str]
    category_ids: list[int]
    transform: Callable[..., dict]

    def detect(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detect objects in one or more images.

        Args:
            images: images prepared by ``transform``, each ``(3, H, W)`` uint8.
            sizes: list with a tuple (height, width) for each image, usually its original size. Boxes are scaled to this
                size.

        Returns:
            List with one dictionary for each image, on the CPU: ``boxes`` ``(n, 4)``, xyxy in pixels of the image size
            in ``sizes``, ``scores`` ``(n,)`` and ``labels`` ``(n,)``. Detections are sorted by descending score.
        """


class CheckpointDetector:
    """Detector from a checkpoint, with the interface of :class:`Detector`.

    Args:
        module: trained module, see :func:`mobile_former.training.run.checkpoint.load_checkpoint`.
        data_options: dictionary with the options of the data module, from the checkpoint of ``module``.
        device: device of the model. Default: the GPU if present, else the CPU.
    """

    def __init__(self, module: DetectionModule, data_options: dict, device: str | None = None):
        self.module = module.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        self.class_names = module.hparams.class_names
        self.category_ids = module.category_ids
        self.transform = eval_transform(data_options["short_side"], data_options["longest"])
        self.mean, self.std = data_options["mean"], data_options["std"]

    def detect(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """Detect objects in one or more images. See :meth:`Detector.detect` for arguments and result."""
        return self.module.detect(images, sizes, self.mean, self.std)


def predict(
    detector: Detector, paths: Sequence[Path], *, score_threshold: float = 0.3, batch_size: int = 8
) -> Iterator[dict]:
    """Detect objects in image files.

    Args:
        detector: detector to run.
        paths: paths of the images.
        score_threshold: minimum score of a detection, in [0, 1].
        batch_size: number of images in a batch.

    Yields:
        One dictionary for each path, in the given order. It has the keys ``path``, ``width``, ``height`` and
        ``detections``. ``detections`` is a list of dictionaries, sorted by descending score, with the keys ``label``,
        ``class`` (name of the class), ``score`` and ``box`` (xyxy in pixels of the image). If an image cannot be read,
        its dictionary has only the keys ``path`` and ``error`` (a message).
    """
    images = ImageFiles(paths, detector.transform, bboxes=np.zeros((0, 4)), labels=[])
    workers = default_workers() if len(paths) > 4 * batch_size else 0
    loader = DataLoader(images, batch_size, num_workers=workers, collate_fn=list)
    number = 0
    for batch in loader:
        readable = [sample for sample in batch if not isinstance(sample, str)]
        found = iter(())
        if readable:
            found = iter(detector.detect(*zip(*readable, strict=True)))
        for sample in batch:
            path, number = str(paths[number]), number + 1
            if isinstance(sample, str):
                yield {"path": path, "error": sample}
                continue
            height, width = sample[1]
            detections = listed(next(found), detector.class_names, score_threshold)
            yield {"path": path, "width": width, "height": height, "detections": detections}


def listed(found: dict[str, torch.Tensor], names: Sequence[str], score_threshold: float) -> list[dict]:
    """Convert the detections of an image from tensors to a list of dictionaries, as in :func:`predict`.

    Detections below the minimum score and boxes that are not finite are left out.

    Args:
        found: detections of the image: one dictionary of the list that :meth:`Detector.detect` returns.
        names: class names in the order of the labels.
        score_threshold: minimum score, in [0, 1].
    """
    # A model that has diverged returns boxes of NaN.
    kept = (found["scores"] >= score_threshold) & found["boxes"].isfinite().all(1)
    labels, scores, boxes = (found[name][kept].tolist() for name in ("labels", "scores", "boxes"))
    return [
        {"label": label, "class": names[label], "score": score, "box": box}
        for label, score, box in zip(labels, scores, boxes, strict=True)
    ]


def _drawing_paths(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Return a list with one output path in ``folder`` for the drawing of each image.

    A drawing has the file name of its image. ``.png`` is appended unless the image is JPEG or PNG. If another drawing
    already has this name, the names of parent folders are put in front.

    Raises:
        InputError: a drawing would replace one of the images.
    """
    images = {path.resolve() for path in paths}
    taken: set[str] = set()
    drawings = []
    for path in paths:
        name = path.name if path.suffix.lower() in _PICTURE_SUFFIXES else f"{path.name}.png"
        folders = path.absolute().parts[1:-1]
        candidates = itertools.chain(
            ("-".join((*folders[len(folders) - depth :], name)) for depth in range(len(folders) + 1)),
            (f"{number}-{name}" for number in itertools.count(2)),
        )
        # Some file systems do not distinguish A.jpg from a.jpg.
        chosen = next(candidate for candidate in candidates if candidate.casefold() not in taken)
        taken.add(chosen.casefold())
        drawing = folder / chosen
        if drawing.resolve() in images:
            raise InputError(f"--drawings {folder} would replace the image {drawing}: give another folder")
        drawings.append(drawing)
    return drawings


def _draw(prediction: dict, path: Path) -> None:
    detections = prediction["detections"]
    draw_detections(
        read_image(prediction["path"]),
        [detection["box"] for detection in detections],
        [detection["label"] for detection in detections],
        [caption(detection["class"], detection["score"]) for detection in detections],
        {detection["label"]: detection["class"] for detection in detections},
        path,
    )


def _print(predictions: list[dict]) -> None:
    table = Table(Column("image", overflow="fold"), "detections", Column("best", overflow="fold"))
    for prediction in predictions:
        if "error" in prediction:
            row = (prediction["path"], "unreadable", "")
        else:
            found = prediction["detections"]
            best = ", ".join(f"{detection['class']} {detection['score']:.3f}" for detection in found[:_LISTED])
            row = (prediction["path"], str(len(found)), best)
        # Names may contain rich markup, and paths bytes that are not valid text.
        table.add_row(*(escape(cell.encode(errors="backslashreplace").decode()) for cell in row))
    console().print(table)


def _write_json(predictions: list[dict], detector: Detector, path: Path) -> None:
    names, ids = detector.class_names, detector.category_ids
    images, annotations, errors = [], [], []
    for number, prediction in enumerate(predictions, start=1):
        if "error" in prediction:
            errors.append({"file_name": prediction["path"], "message": prediction["error"]})
            continue
        size = {"width": prediction["width"], "height": prediction["height"]}
        images.append({"id": number, "file_name": prediction["path"], **size})
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


def _write_csv(predictions: list[dict], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "score", "left", "top", "right", "bottom", "error"])
        for prediction in predictions:
            if "error" in prediction:
                writer.writerow([prediction["path"], *[""] * 6, prediction["error"]])
                continue
            for detection in prediction["detections"]:
                box = (round(value, 2) for value in detection["box"])
                writer.writerow([prediction["path"], detection["class"], round(detection["score"], 6), *box, ""])


if __name__ == "__main__":
    run_command(main)
