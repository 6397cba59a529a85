"""What ``validate`` and ``test`` of both tasks share: their options, and the run of a trainer over labelled data."""

from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer

from mobile_former.training.cli.command import Parser, require_writable
from mobile_former.training.data.module import ImageData


def evaluation_parser(task: str, stage: str) -> Parser:
    """The parser of a task's command that scores a checkpoint.

    Args:
        task: name of the task.
        stage: ``"validate"`` or ``"test"``, which also has ``--output``, a folder to write.
    """
    parser = Parser(prog=f"python -m {task}.{stage}", description="Score a checkpoint on labelled images.")
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
    return parser


def output_folder(options: Namespace) -> Path:
    """The folder that ``test`` writes, made before the work, so that none is lost."""
    folder = options.output or folder_of(options.ckpt_path) / "test"
    require_writable(folder / "metrics.json")
    return folder


def folder_of(checkpoint: str | Path) -> Path:
    """The folder for what is made from a checkpoint: its run's, or its own where it lies outside of a run."""
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else folder


def score(stage: str, trainer: Trainer, module: LightningModule, data: ImageData) -> dict[str, float]:
    """Run a module over the data of a stage; returns what it logs."""
    data.class_names = module.hparams.class_names
    run = trainer.test if stage == "test" else trainer.validate
    (metrics,) = run(module, data, verbose=False)
    return metrics
