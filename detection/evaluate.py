"""What ``validate`` and ``test`` share: score a checkpoint on images with boxes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pytorch_lightning import Trainer

from detection.data.module import DetectionData
from detection.module import DetectionModule
from mobile_former.errors import InputError
from mobile_former.training.cli.command import require_writable
from mobile_former.training.cli.evaluation import evaluation_parser, output_folder, score
from mobile_former.training.run.checkpoint import load_checkpoint


def evaluate(stage: str) -> None:
    """Parse a command line and score a checkpoint.

    Args:
        stage: ``"validate"`` (prints the numbers) or ``"test"`` (also writes a folder).
    """
    parser = evaluation_parser("detection", stage)
    parser.add_argument(
        "--data.split",
        type=Literal["train", "val", "test"] | None,
        default=None,
        help="which images; default: val" + (", or test where there is one" if stage == "test" else ""),
    )
    parser.add_argument("--data.annotations", type=dict[str, str] | None, default=None, help="files, by split")
    parser.add_argument("--data.images", type=dict[str, str] | None, default=None, help="folders, by split")
    parser.add_argument("--results", type=Path | None, default=None, help="a .json to write: COCO results")
    options = parser.parse_args()
    trainer = Trainer(**parser.instantiate(options).trainer)
    module, data_options = load_checkpoint(options.ckpt_path, DetectionModule, "detection")
    if stage == "test":
        folder = output_folder(options)
    if options.results:
        if options.results.suffix != ".json":
            raise InputError(f"--results {options.results}: give a name that ends in .json")
        require_writable(options.results)
    data = labelled_data(data_options, options.data)
    metrics = score(stage, trainer, module, data)

    split, dataset = (data.test_split, data.test_set) if stage == "test" else (data.val_split, data.val_set)
    title = f"{module.label} on {split} of {data.dataset_name}: {len(dataset)} images"
    if trainer.is_global_zero:
        module.print_scores(title)
        module.print_classes()
    if options.results:
        results = module.average_precision.results()  # of all processes, which all have to ask
    if not trainer.is_global_zero:
        return
    if stage == "test":
        scored = {"data": data.dataset_name, "split": split, "images": len(dataset), "checkpoint": options.ckpt_path}
        (folder / "metrics.json").write_text(json.dumps(scored | metrics, indent=2) + "\n")
        module.write_scores(folder / "ap.json")
        print(f"written: {folder}/: metrics.json, ap.json")
    if options.results:
        options.results.write_text(json.dumps(results) + "\n")
        print(f"written: {options.results}")


def labelled_data(data_options: dict, given: Mapping) -> DetectionData:
    """The images that a checkpoint was trained on, or others.

    Args:
        data_options: those in the checkpoint.
        given: options in their place, those that are not None: ``root``, ``annotations``, ``batch_size``, ….

    Raises:
        InputError: an option out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if {"root", "annotations"} & set(given):
        # Data of another place: nothing of what training was told about places holds there.
        given = {"root": None, "annotations": None, "images": None} | given | {"dataset": "coco"}
    return DetectionData(**(data_options | given))
