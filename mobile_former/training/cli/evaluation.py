"""Shared code of the ``validate`` and ``test`` commands: options, output folder and scoring."""

from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer

from mobile_former.training.cli.command import folder_of, require_writable
from mobile_former.training.cli.lightning_parser import LightningParser
from mobile_former.training.data.module import ImageData
from mobile_former.training.data.splits import SPLIT_FILE
from mobile_former.training.data.timed_loader import loader_error
from mobile_former.training.run.shared_cores import SharedCores


def evaluation_parser(task: str, stage: str) -> LightningParser:
    """Build the argument parser of a command that scores a checkpoint.

    Args:
        task: ``"classification"`` or ``"detection"``.
        stage: name of the command, ``"validate"`` or ``"test"``. Only ``test`` has the option ``--output``.
    """
    parser = LightningParser(prog=f"python -m {task}.{stage}", description="Score a checkpoint on labelled images.")
    parser.add_argument("--ckpt_path", required=True, help="checkpoint, such as checkpoints/best.ckpt of a run")
    parser.add_argument(
        "--data.root", type=str | None, default=None, help="folder of the images; default: the one of training"
    )
    parser.add_argument(
        "--data.batch_size", type=int | None, default=None, help="batch size per process; default: that of training"
    )
    parser.add_argument(
        "--data.num_workers",
        type=int | None,
        default=None,
        help="number of loading processes; default: that of training",
    )
    if stage == "test":
        parser.add_argument(
            "--output", type=Path | None, default=None, help="folder for the results; default: test/ in the run folder"
        )
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({"trainer.logger": False, "trainer.enable_model_summary": False})
    parser.set_defaults({"trainer.enable_checkpointing": False, "trainer.enable_progress_bar": False})
    parser.set_defaults({"trainer.use_distributed_sampler": False})  # the data module's samplers split by process
    return parser


def output_folder(options: Namespace) -> Path:
    """Create the output folder of the ``test`` command and return its path.

    This is the folder ``--output`` or, if the option is not given, ``test/`` in the run folder of the checkpoint.
    """
    folder = options.output or folder_of(options.ckpt_path) / "test"
    require_writable(folder / "metrics.json")
    return folder


def keep_known_split(data: ImageData, checkpoint: str | Path, root: str | None) -> None:
    """Make a data module use the same validation images as the training run.

    If the evaluation uses another data folder than the training run, and this folder has no validation split, all
    images of the folder are used.

    Args:
        data: data module of the evaluation.
        checkpoint: path of the checkpoint.
        root: data folder of the training run.
    """
    other = data.hparams.root != root
    data.keep_split(None, folder_of(checkpoint) / SPLIT_FILE, only_known=other)


def score(stage: str, trainer: Trainer, module: LightningModule, data: ImageData) -> dict[str, float]:
    """Score a model on validation or test data.

    Args:
        stage: ``"validate"`` or ``"test"``.
        trainer: trainer that runs the evaluation.
        module: model to score.
        data: data module with the images. This function sets its class names to those of ``module``.

    Returns:
        A dictionary from metric name to value.

    Raises:
        InputError: a process that loads images was killed or got no shared memory.
    """
    data.class_names = module.hparams.class_names
    trainer.callbacks.append(SharedCores())
    run = trainer.test if stage == "test" else trainer.validate
    try:
        (metrics,) = run(module, data, verbose=False)
    except RuntimeError as error:
        if lost := loader_error(error):
            raise lost from error
        raise
    return metrics
