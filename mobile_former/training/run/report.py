"""Report of a training run: a header at its start, scores and pictures at its end."""

import time

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.profilers import PassThroughProfiler
from rich.markup import escape
from rich.table import Table

from mobile_former.errors import InputError
from mobile_former.training.console import console
from mobile_former.training.optimisation import total_batch
from mobile_former.training.run.figures import draw_curves
from mobile_former.training.run.folder import RunFolder
from mobile_former.training.run.trackers import log_options, send_results

_TRAINER_OPTIONS = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
    "world_size",
)


def figure(value: float) -> str:
    """Convert a score to text with four decimals, or to ``"none to find"`` if the score is negative.

    pycocotools returns -1 for a class or a size without objects.
    """
    return "none to find" if value < 0 else f"{value:.4f}"


def describe_batch(trainer: Trainer) -> str:
    """Return a line of text about the number of images per optimiser step.

    An example is ``"64 images a step: 8 images a process x 4 processes x 2 batches accumulated"``.
    """
    factors = {
        "images a process": trainer.datamodule.hparams.batch_size,
        "processes": trainer.world_size,
        "batches accumulated": trainer.accumulate_grad_batches,
    }
    terms = [f"{count} {name}" for name, count in factors.items() if count > 1]
    return f"{total_batch(trainer)} images a step" + (f": {' x '.join(terms)}" if len(terms) > 1 else "")


def _end_reasons(trainer: Trainer) -> list[str]:
    """Return a list with a line for each callback that has ended the training early."""
    reasons = [
        f"EarlyStopping: {callback.stopping_reason_message.removesuffix(' Signaling Trainer to stop.')}"
        for callback in trainer.early_stopping_callbacks
        if callback.stopping_reason_message
    ]
    timers = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
    return reasons + ["--trainer.max_time: the time is over" for left in timers if left is not None and left <= 0]


class RunReport(Callback):
    """Callback that reports on a run: a header at the start, scores and pictures at the end.

    It also writes a picture of augmented training images and measures the training time.

    The LightningModule must have the following members:

    - ``label``: display name of the model;
    - ``curves``: dictionary that assigns metrics to subplots, see the argument ``panels`` of
      :func:`mobile_former.training.run.figures.draw_curves`;
    - ``describe()``: return a description of the model in one line;
    - ``draw_results(folder, datamodule)``: write pictures of the results.

    The data module must have the following members:

    - ``dataset_name``: name of the data set;
    - ``describe()``: return a description of the data in one line;
    - ``draw_augmented(path)``: write a picture of augmented training images.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self._seconds = 0.0  # training time up to the last start of the clock
        self._start = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Send the path of the run folder from the first process to the others.

        Only the first process creates the folder and knows its path.
        """
        self.folder.path = trainer.strategy.broadcast(self.folder.path)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the header of the run, and write a picture of augmented training images to ``augmented.png``.

        The header describes the model, the data, the batch size and the run folder.
        """
        if not trainer.is_global_zero:
            return
        print(f"model  {pl_module.describe()}")
        print("\n".join([f"data   {trainer.datamodule.describe()}", *trainer.datamodule.notes()]))
        print(f"batch  {describe_batch(trainer)}")
        log_options(
            trainer,
            {
                "run": {
                    "name": self.folder.path.name,
                    "seed": torch.initial_seed(),
                    "total_batch": total_batch(trainer),
                },
                "trainer": {name: getattr(trainer, name) for name in _TRAINER_OPTIONS},
                "model": pl_module.hparams,
                "data": {**trainer.datamodule.hparams, **trainer.datamodule.training_options},
            },
        )
        augmented = self.folder.path / "augmented.png"
        trainer.datamodule.draw_augmented(augmented)
        print(f"run    {self.folder.path}/ (training images: {augmented.name})", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the timer that measures the training time."""
        self._start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the timer that measures the training time. If a callback has ended the training early, print why."""
        self._seconds, self._start = self._elapsed(), None
        if trainer.should_stop and trainer.is_global_zero:
            for reason in _end_reasons(trainer):
                print(f"ended  {reason}", flush=True)

    def state_dict(self) -> dict:
        """Return a dictionary with the training time so far, in seconds.

        A resumed run adds its own time to this value.
        """
        return {"seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the training time so far from a checkpoint."""
        self._seconds = state_dict["seconds"]

    def finish(self, trainer: Trainer, module: LightningModule, datamodule: LightningDataModule) -> None:
        """Score the best checkpoint, write metrics and pictures to the run folder, and print a summary.

        The last checkpoint is used if there is no best one. If validation is disabled, no scores are computed.

        Args:
            trainer: trainer of the run.
            module: trained model.
            datamodule: data module of the run.

        Raises:
            InputError: nothing was trained.
        """
        # Read first: validating the checkpoint restores the state that the callbacks had in that checkpoint.
        finished_epochs, seconds = trainer.current_epoch, self._seconds
        speed = float(trainer.callback_metrics.get("images/s", 0))  # 0: a finished run was resumed
        metrics = {"model": module.label, "data": datamodule.dataset_name}
        validated = trainer.limit_val_batches != 0
        checkpoint = self.folder.best if self.folder.best.is_file() else self.folder.last
        if not checkpoint.is_file():
            raise InputError("nothing was trained: give --trainer.max_epochs (or max_steps) of 1 or more")
        loggers = trainer.loggers
        if validated:
            trainer.loggers = []  # these scores are not part of the curves
            trainer.profiler = PassThroughProfiler()  # the table of a profiler has been printed
            figures = trainer.validate(module, datamodule, ckpt_path=checkpoint, verbose=False, weights_only=True)[0]
            metrics |= {name: round(value, 6) for name, value in figures.items()}
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(content["state_dict"])  # Trainer.validate restores the weights before averaging
        metrics |= {
            "total_batch": total_batch(trainer),
            "epochs": finished_epochs,
            "best_epoch": content["epoch"] + 1,
            "seconds": round(seconds, 1),
            **({"images/s": round(speed, 1)} if speed else {}),
            **datamodule.skipped_counts(),
            "best_checkpoint": str(checkpoint),
            "last_checkpoint": str(self.folder.last),
        }
        if trainer.is_global_zero:
            if validated:
                module.draw_results(self.folder.path, datamodule)
            draw_curves(self.folder.history(), module.curves, self.folder.path / "curves.png")
            self.folder.write_metrics(metrics)
            self._print(metrics)
            send_results(loggers, self.folder, checkpoint)

    def _elapsed(self) -> float:
        return self._seconds + (0.0 if self._start is None else time.perf_counter() - self._start)

    def _print(self, metrics: dict) -> None:
        title = escape(f"{metrics['model']} on {metrics['data']}")
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in metrics.items():
            if not isinstance(value, str):
                table.add_row(name, figure(value) if "/" in name and name != "images/s" else str(value))
        console().print(table)
        # Below the table, because a narrow terminal would cut paths in it.
        print(f"checkpoint  {metrics['best_checkpoint']}")
        pictures = ", ".join(sorted(path.name for path in self.folder.path.glob("*.png")))
        print(f"pictures    {self.folder.path}/: {pictures}")
