"""Code that the commands ``validate`` and ``test`` share. Both evaluate a classification checkpoint."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pytorch_lightning import Trainer
from rich.markup import escape
from rich.table import Table

from classification.data.module import ClassificationData
from classification.data.shards import holds_shards
from classification.mistakes import Mistakes
from classification.module import ClassificationModule
from mobile_former.errors import InputError
from mobile_former.training.cli.evaluation import evaluation_parser, keep_known_split, output_folder, score
from mobile_former.training.console import console
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.training.run.figures import draw_confusion


def evaluate(stage: str) -> None:
    """Parse the command line, evaluate a checkpoint on labelled images, and print the loss and accuracy.

    Args:
        stage: ``"validate"`` or ``"test"``. ``"test"`` also prints the scores of each class, and writes a folder with
            the scores, the confusion matrix and the mistakes.
    """
    parser = evaluation_parser("classification", stage)
    options = parser.parse_args()
    trainer = Trainer(**parser.instantiate(options).trainer)
    module, data_options = load_checkpoint(options.ckpt_path, ClassificationModule, "classification")
    if stage == "test":
        folder = output_folder(options)
    data = labelled_data(options.ckpt_path, data_options, options.data)
    mistakes = Mistakes()
    if stage == "test":
        trainer.callbacks.append(mistakes)
    metrics = score(stage, trainer, module, data)
    if not trainer.is_global_zero:
        return

    source = data.test_set.source if stage == "test" else data.val_set.source
    split = "val" if stage == "validate" else data.test_split
    title = f"{module.label} on {split} of {data.dataset_name}: {len(source)} images"
    if trainer.is_global_zero and data.notes():
        print("\n".join(data.notes()))
    table = Table(title=escape(title), title_justify="left", show_header=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console().print(table)
    if stage == "test":
        _write(folder, metrics, module)
        drawn = mistakes.write(folder, module.hparams.class_names)
        console().print(_class_table(module))
        print(f"written: {folder}/: metrics.json, per_class.csv, confusion_matrix.png, {', '.join(drawn)}")


def labelled_data(checkpoint: str, data_options: dict, given: Mapping) -> ClassificationData:
    """Build the data module that reads the images and labels for an evaluation.

    Args:
        checkpoint: path of the checkpoint. If its training run took its validation images from the training data, they
            are the validation images here too.
        data_options: dictionary with the data module's options, as stored in the checkpoint.
        given: dictionary with options that replace the stored options, such as ``root`` and ``batch_size``. An option
            whose value is None keeps its stored value. If ``root`` is given, the type of the data set is detected: tar
            shards or an image folder.

    Raises:
        InputError: an option is out of range, or the stored root is a shell command (``pipe:``) and ``given`` has no
            root. A command from a checkpoint is never run.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if "root" in given:
        given["dataset"] = "shards" if holds_shards(given["root"]) else "folder"
    elif str(data_options["root"]).startswith("pipe:"):
        # A command from a file is never executed. Only the user can give one.
        raise InputError(
            f"the data root in {checkpoint} is a command, which is not run: {data_options['root']}. To run it, give it "
            "as --data.root"
        )
    data = ClassificationData(**(data_options | given))
    keep_known_split(data, checkpoint, data_options.get("root"))
    return data


def _write(folder: Path, metrics: dict[str, float], module: ClassificationModule) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    with (folder / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", *module.per_class])
        writer.writerows(_per_class(module))
    draw_confusion(module.confusion, module.hparams.class_names, folder / "confusion_matrix.png")


def _per_class(module: ClassificationModule) -> list[tuple]:
    """Return a list with a tuple for each class: name, number of images, and the scores in ``module.per_class``.

    A score is None if it is undefined because the class has no images. ROC-AUC is also None if all images have this
    class.
    """
    counts = module.confusion.sum(1).astype(int).tolist()
    scores = np.stack(list(module.per_class.values()), 1).astype(float).round(6).tolist()
    return [
        (name, count, *(None if math.isnan(value) else value for value in row))
        for name, count, row in zip(module.hparams.class_names, counts, scores, strict=True)
    ]


def _class_table(module: ClassificationModule, most: int = 30) -> Table:
    """Build a :class:`rich.table.Table` of the classes with the lowest F1 score, sorted by ascending F1 score.

    The table has at most ``most`` rows. Classes without images are left out.
    """
    f1 = 2 + list(module.per_class).index("f1")
    rows = sorted((row for row in _per_class(module) if row[1]), key=lambda row: row[f1])
    title = "scores by class" + (f" (the lowest {most} of {len(rows)})" if len(rows) > most else "")
    table = Table("class", "images", *module.per_class, title=title, title_justify="left")
    for name, count, *scores in rows[:most]:
        table.add_row(escape(name), str(count), *("" if value is None else f"{value:.4f}" for value in scores))
    return table
