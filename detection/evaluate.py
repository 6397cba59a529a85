"""Code that the commands ``validate`` and ``test`` share. Both evaluate a detection checkpoint on annotated images."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pytorch_lightning import Trainer

from detection.data.module import DetectionData, require_annotations
from detection.mistakes import class_scores, write_mistakes
from detection.module import SHEET_THRESHOLD, DetectionModule
from mobile_former.errors import InputError
from mobile_former.training.cli.command import require_writable
from mobile_former.training.cli.evaluation import evaluation_parser, keep_known_split, output_folder, score
from mobile_former.training.run.checkpoint import load_checkpoint


def evaluate(stage: str) -> None:
    """Parse the command line, and evaluate a detection checkpoint on annotated images.

    Args:
        stage: ``"validate"`` prints the COCO scores. ``"test"`` prints them too, and writes them to a folder, together
            with the mistakes and the precision, recall and F1 score of each class.
    """
    parser = evaluation_parser("detection", stage)
    parser.add_argument(
        "--data.split",
        type=Literal["train", "val", "test"] | None,
        default=None,
        help="split to score; default: " + ("test if there is one, else val" if stage == "test" else "val"),
    )
    parser.add_argument(
        "--data.annotations", type=dict[str, str] | None, default=None, help="annotation files by split"
    )
    parser.add_argument("--data.images", type=dict[str, str] | None, default=None, help="image folders by split")
    parser.add_argument(
        "--results", type=Path | None, default=None, help="file for the detections, .json in COCO results format"
    )
    options = parser.parse_args()
    trainer = Trainer(**parser.instantiate(options).trainer)
    module, data_options = load_checkpoint(options.ckpt_path, DetectionModule, "detection")
    if stage == "test":
        folder = output_folder(options)
    if options.results:
        if options.results.suffix != ".json":
            raise InputError(f"--results {options.results}: give a name that ends in .json")
        require_writable(options.results)
    data = labelled_data(data_options, options.data, options.ckpt_path)
    data.class_names = module.hparams.class_names
    data.setup(stage)
    split, dataset = (data.test_split, data.test_set) if stage == "test" else (data.val_split, data.val_set)
    if not options.results:
        require_annotations(dataset.source, "scores need it")
    if trainer.is_global_zero and data.notes():
        print("\n".join(data.notes()))
    metrics = score(stage, trainer, module, data)

    title = f"{module.label} on {split} of {data.dataset_name}: {len(dataset)} images"
    scored = dataset.source.annotated
    if trainer.is_global_zero and scored:
        module.print_scores(title)
        module.print_classes()
    elif trainer.is_global_zero:
        print(f"{title}; no scores, because {dataset.source.path} has no list 'annotations'")
    # These gather from all processes, so all must call them.
    results = module.average_precision.results() if options.results else []
    matches = module.average_precision.match(SHEET_THRESHOLD) if stage == "test" and scored else []
    if not trainer.is_global_zero:
        return
    if stage == "test":
        about = {"data": data.dataset_name, "split": split, "images": len(dataset), "checkpoint": options.ckpt_path}
        (folder / "metrics.json").write_text(json.dumps(about | metrics, indent=2) + "\n")
        written = ["metrics.json"]
        if scored:
            module.write_scores(folder / "ap.json")
            _write_classes(module, class_scores(matches, dataset.source.category_ids), folder / "per_class.csv")
            written += ["ap.json", "per_class.csv", *write_mistakes(matches, dataset.source, folder)]
        print(f"written: {folder}/: {', '.join(written)}")
    if options.results:
        options.results.write_text(json.dumps(results) + "\n")
        print(f"written: {options.results}")


def _write_classes(module: DetectionModule, rows: Sequence[dict], path: Path) -> None:
    """Write a CSV file with a row for each class: number of objects, AP, and the scores in ``rows``.

    ``rows`` is the output of :func:`detection.mistakes.class_scores`.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "AP", *rows[0]])
        for name, row in zip(module.hparams.class_names, rows, strict=True):
            value = module.per_class[name]
            writer.writerow([name, None if value < 0 else round(value, 6), *row.values()])


def labelled_data(data_options: dict, given: Mapping, checkpoint: str | None = None) -> DetectionData:
    """Build the data module that reads the images and annotations for an evaluation.

    Args:
        data_options: dictionary with the data module's options, as stored in a checkpoint.
        given: dictionary with options that replace the stored options, such as ``root`` and ``batch_size``. An option
            whose value is None keeps its stored value. If ``root`` or ``annotations`` is given, all stored paths are
            ignored, and the layout of the data set is detected anew.
        checkpoint: path of the checkpoint. If its training run took its validation images from the training data, they
            are the validation images here too.

    Raises:
        InputError: an option is out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if {"root", "annotations"} & set(given):
        # Other data: no path of the training data applies to it.
        given = {"root": None, "annotations": None, "images": None} | given | {"dataset": "coco"}
    data = DetectionData(**(data_options | given))
    if checkpoint is not None:
        keep_known_split(data, checkpoint, data_options.get("root"))
    return data
