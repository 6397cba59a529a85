"""``python -m classification.predict``: classify image files."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from classification.data.transforms import eval_transform
from classification.export.exported_classifier import ExportedClassifier
from classification.module import ClassificationModule
from mobile_former.errors import InputError
from mobile_former.training.cli.command import exit_if_unreadable, require_writable, run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.cli.prediction import add_predict_options, check_predict_options
from mobile_former.training.console import console
from mobile_former.training.data.images import ImageFiles, expand, normalise, read_image
from mobile_former.training.data.module import default_workers
from mobile_former.training.export.onnx_file import OnnxModel
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.training.run.figures import image_sheet

SHEET_MOST = 60  # images; more would be too small to look at


def main() -> None:
    """Parse the command line, classify the images and print the predictions. Write them to files if requested."""
    parser = Parser(prog="python -m classification.predict", description="Classify images.")
    add_predict_options(parser, "classification", output="a .csv or .json file to write", batch_size=32)
    parser.add_argument("--sheet", type=Path | None, default=None, help="write a .png of the images with their classes")
    parser.add_argument("--top_k", type=int, default=5, help="number of classes per image")
    options = parser.parse_args()
    check_predict_options(options, (".csv", ".json"))
    if options.sheet and options.sheet.suffix != ".png":
        raise InputError(f"--sheet {options.sheet}: give a name that ends in .png")
    if options.top_k < 1:
        raise InputError(f"--top_k is {options.top_k}: give at least 1")

    paths = expand(options.images)
    for target in filter(None, (options.output, options.sheet)):  # before the work, which would be lost otherwise
        require_writable(target)
    if options.onnx:
        classifier: Classifier = ExportedClassifier(OnnxModel(options.onnx, "classification"))
    else:
        classifier = CheckpointClassifier(*load_checkpoint(options.ckpt_path, ClassificationModule, "classification"))
    predictions = predict(classifier, paths, top_k=options.top_k, batch_size=options.batch_size)
    _print(predictions)
    for target, write in ((options.output, _write), (options.sheet, _draw)):
        if target:
            write(predictions, target)
            print(f"written: {target}")
    exit_if_unreadable([prediction["error"] for prediction in predictions if "error" in prediction], len(paths))


class Classifier(Protocol):
    """Interface of a classifier that :func:`predict` can run. The classifier comes from a checkpoint or an ONNX file.

    Attributes:
        class_names: class names in the order of the logits.
        transform: function that prepares an image ``(H, W, 3)`` uint8 for :meth:`logits`. The call is
            ``transform(image=image)["image"]``, as for an albumentations pipeline.
    """

    class_names: list[str]
    transform: Callable[..., dict]

    def logits(self, images: Sequence[Tensor]) -> Tensor:
        """Return the logits ``(B, K)`` of a list of images ``(3, H, W)`` uint8 that ``transform`` has prepared."""


class CheckpointClassifier:
    """Classifier from a checkpoint, with the interface of :class:`Classifier`. It runs on the GPU if available.

    Args:
        module: trained module, see :func:`mobile_former.training.run.checkpoint.load_checkpoint`.
        data_options: dictionary with the options of the data module, from the checkpoint of ``module``.
    """

    def __init__(self, module: ClassificationModule, data_options: dict):
        self.module = module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.class_names = module.hparams.class_names
        self.transform = eval_transform(data_options["image_size"], data_options["crop_fraction"])
        self.mean, self.std = data_options["mean"], data_options["std"]

    @torch.inference_mode()
    def logits(self, images: Sequence[Tensor]) -> Tensor:
        """Return the logits ``(B, K)`` of a list of square images ``(3, S, S)`` uint8, prepared by ``transform``."""
        pixels = torch.stack(list(images)).to(self.module.device)
        return self.module(normalise(pixels, self.mean, self.std, self.module.dtype))


def predict(classifier: Classifier, paths: list[Path], *, top_k: int = 5, batch_size: int = 32) -> list[dict]:
    """Classify image files.

    Args:
        classifier: classifier to run.
        paths: paths of the images.
        top_k: maximum number of classes in the result of an image.
        batch_size: number of images in a batch.

    Returns:
        List with one dictionary for each path, in the given order. It has the keys ``path``, ``class``, ``probability``
        and ``top_k``. ``class`` is the name of the most probable class. ``top_k`` is a list of dictionaries with the
        keys ``class`` and ``probability``, most probable first. If an image cannot be read, its dictionary has only the
        keys ``path`` and ``error`` (a message).
    """
    names = classifier.class_names
    workers = default_workers() if len(paths) > 4 * batch_size else 0
    loader = DataLoader(ImageFiles(paths, classifier.transform), batch_size, num_workers=workers, collate_fn=list)
    predictions = []
    for batch in loader:
        images = [sample[0] for sample in batch if not isinstance(sample, str)]
        logits = classifier.logits(images) if images else torch.empty(0, len(names))
        best = logits.softmax(1).topk(min(top_k, len(names)))
        rows = iter(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        for sample in batch:
            path = str(paths[len(predictions)])
            if isinstance(sample, str):
                predictions.append({"path": path, "error": sample})
                continue
            top = [
                {"class": names[label], "probability": round(value, 6)}
                for value, label in zip(*next(rows), strict=True)
            ]
            predictions.append({"path": path, **top[0], "top_k": top})
    return predictions


def _print(predictions: list[dict]) -> None:
    table = Table("image", "class", "probability", "next")
    for prediction in predictions:
        if "error" in prediction:
            row = (prediction["path"], "unreadable", "", "")
        else:
            others = ", ".join(f"{other['class']} {other['probability']:.3f}" for other in prediction["top_k"][1:3])
            row = (prediction["path"], prediction["class"], f"{prediction['probability']:.3f}", others)
        table.add_row(*map(escape, row))  # rich would read square brackets in names as markup
    console().print(table)


def _write(predictions: list[dict], path: Path) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(predictions, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    ranks = range(1, 1 + max((len(prediction.get("top_k", ())) for prediction in predictions), default=0))
    columns = [f"{name}_{rank}" if rank > 1 else name for rank in ranks for name in ("class", "probability")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *columns, "error"])
        for prediction in predictions:
            cells = [value for top in prediction.get("top_k", ()) for value in (top["class"], top["probability"])]
            cells += [""] * (len(columns) - len(cells))
            writer.writerow([prediction["path"], *cells, prediction.get("error", "")])


def _draw(predictions: list[dict], path: Path) -> None:
    readable = [prediction for prediction in predictions if "error" not in prediction]
    shown = readable[:SHEET_MOST]
    if not shown:
        raise InputError(f"--sheet {path} is not written: none of the images could be read")
    image_sheet(
        [read_image(prediction["path"]) for prediction in shown],
        [
            f"{prediction['class']}  {prediction['probability']:.0%}\n{Path(prediction['path']).name}"
            for prediction in shown
        ],
        path,
        title=f"the first {len(shown)} of {len(readable)} images" if len(shown) < len(readable) else "",
    )


if __name__ == "__main__":
    run_command(main)
