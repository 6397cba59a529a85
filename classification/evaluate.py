"""What ``validate`` and ``test`` share: score a checkpoint on labelled images."""

import csv
import json
from pathlib import Path

from pytorch_lightning import Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from classification.checkpoint import load_checkpoint
from classification.data import ClassificationData
from classification.module import ClassificationModule
from mobile_former.training.command import Parser, require_writable
from mobile_former.training.figures import draw_confusion


def evaluate(stage: str) -> None:
    """Parse a command line and score a checkpoint.

    Args:
        stage: ``"validate"`` (prints the scores) or ``"test"`` (also those of each class, and writes a folder).
    """
    parser = Parser(prog=f"python -m classification.{stage}", description="Score a checkpoint on labelled images.")
    parser.add_argument("--ckpt_path", required=True, help="a run's checkpoints/best.ckpt")
    parser.add_argument("--data.root", type=str | None, default=None, help="the images; default: those of training")
    parser.add_argument("--data.batch_size", type=int | None, default=None, help="default: that of training")
    parser.add_argument("--data.num_workers", type=int | None, default=None, help="loading processes")
    if stage == "test":
        parser.add_argument(
            "--output", type=Path | None, default=None, help="folder to write; default: test/ beside checkpoints/"
        )
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({"trainer.logger": False, "trainer.enable_model_summary": False})
    parser.set_defaults({"trainer.enable_checkpointing": False, "trainer.enable_progress_bar": False})
    parser.set_defaults({"trainer.use_distributed_sampler": False})  # the data's own samplers split by process
    options = parser.parse_args()
    trainer_options = parser.instantiate(options).trainer

    checkpoint = Path(options.ckpt_path)
    module, data_options = load_checkpoint(checkpoint)
    if stage == "test":
        beside = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
        folder = options.output or beside / "test"
        require_writable(folder / "metrics.json")  # before the work, so that none is lost
    given = {name: value for name, value in options.data.items() if value is not None}
    if "root" in given:
        given["dataset"] = "folder"
    data = ClassificationData(**(data_options | given))
    data.class_names = module.hparams.class_names
    trainer = Trainer(**trainer_options)
    run = trainer.test if stage == "test" else trainer.validate
    (metrics,) = run(module, data, verbose=False)

    source = data.test_set.source if stage == "test" else data.val_set.source
    split = "val" if stage == "validate" else data.test_split
    title = f"{module.hparams.name} on {split} of {data.dataset_name}: {len(source)} images"
    table = Table(title=escape(title), title_justify="left", show_header=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    console = Console(soft_wrap=True)
    console.print(table)
    if stage == "test":
        _write(folder, metrics, module)
        console.print(_class_table(module))
        print(f"written: {folder}/: metrics.json, per_class.csv, confusion_matrix.png")


def _write(folder: Path, metrics: dict[str, float], module: ClassificationModule) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    with (folder / "per_class.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", "accuracy"])
        writer.writerows(_per_class(module))
    draw_confusion(module.confusion, module.hparams.class_names, folder / "confusion_matrix.png")


def _per_class(module: ClassificationModule) -> list[tuple[str, int, float | None]]:
    """Class, number of images, accuracy (None where the class has no image)."""
    counts = module.confusion.sum(1).astype(int).tolist()
    accuracies = module.per_class.tolist()
    return [
        (name, count, round(accuracy, 6) if count else None)
        for name, count, accuracy in zip(module.hparams.class_names, counts, accuracies, strict=True)
    ]


def _class_table(module: ClassificationModule, most: int = 30) -> Table:
    """The classes with the lowest accuracy first."""
    rows = sorted((row for row in _per_class(module) if row[1]), key=lambda row: row[2])
    title = "accuracy by class" + (f" (the lowest {most} of {len(rows)})" if len(rows) > most else "")
    table = Table("class", "images", "accuracy", title=title, title_justify="left")
    for name, count, accuracy in rows[:most]:
        table.add_row(escape(name), str(count), f"{accuracy:.4f}")
    return table
