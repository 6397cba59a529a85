"""``fit`` for both tasks: Lightning's command line, a folder for the run, and a report at its end."""

import inspect
import logging
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as brief

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from mobile_former.errors import InputError, nearest
from mobile_former.training.cli.command import LONGEST_MESSAGE, Parser
from mobile_former.training.cli.config_check import require_readable, require_transforms
from mobile_former.training.run.checkpoint_io import WholeCheckpointIO
from mobile_former.training.run.folder import ContinuedCSVLogger, RunCheckpoint, RunFolder
from mobile_former.training.run.last_checkpoint import LastCheckpoint
from mobile_former.training.run.progress import EpochLines, GradientNorm, StopOnNonFiniteLoss, Throughput, TrainingBar
from mobile_former.training.run.report import RunReport
from mobile_former.training.run.step_seed import StepSeed
from mobile_former.weights.files import read_file

_logger = logging.getLogger(__name__)


class FitCLI(LightningCLI):
    """Parse, build, fit, report.

    Args:
        task: name of the task, and of the folder under ``runs/``.
        model_class: the task's LightningModule; it has ``monitor`` (the score to maximise), ``architecture`` (the
            options that its weights depend on) and ``label`` (its short name), takes ``class_names``, and draws its
            results by ``draw_results(folder, datamodule)``.
        data_class: the task's LightningDataModule; it has ``class_names``, ``dataset_name`` and
            ``draw_augmented(path)``.
        learned_from_data: the module's arguments that come from the data module.
        configs: folder of the task's own configs.
        embedded: the config among them that is used where none is given.
    """

    def __init__(
        self,
        task: str,
        model_class: type[LightningModule],
        data_class: type[LightningDataModule],
        *,
        configs: Path,
        embedded: str,
        learned_from_data: Sequence[str] = ("class_names",),
    ):
        self.task = task
        self.configs = configs
        self.embedded = embedded
        self.learned_from_data = learned_from_data
        super().__init__(
            model_class,
            data_class,
            save_config_callback=None,  # where it is saved is decided with the run's folder
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"prog": f"python -m {task}.fit", "description": f"Train a model for {task}."},
            trainer_defaults={
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data's own samplers split by process
            },
            run=False,
            auto_configure_optimizers=False,  # the recipe's optimiser and schedule are the model's options
        )

    def fit(self) -> None:
        """Train, then score the best checkpoint and write the run's figures and pictures."""
        try:
            self.trainer.fit(self.model, self.datamodule, ckpt_path=self.resumed, weights_only=True)
        except (InputError, OSError):
            # Lightning counts from 0 until it has read a checkpoint, which must not cost a run that goes on its folder.
            if self.folder and not self.resumed and self.trainer.global_step == 0 and self.trainer.is_global_zero:
                shutil.rmtree(self.folder.path)  # nothing was trained, so nothing is lost and no name taken
            raise
        except SystemExit as stop:  # how a run ends that was told to stop
            if self.folder and self.folder.last.is_file() and self.trainer.is_global_zero:
                told = f"--name {self.folder.path.name} --ckpt_path last"
                print(f"stopped; the same command with {told} goes on", file=sys.stderr)
            if stop.code is None:  # Lightning's, of SIGTERM; a status of 0 would tell schedulers that all is done
                sys.exit(128 + signal.SIGTERM)
            raise
        if self.report:
            self.report.finish(self.trainer, self.model, self.datamodule)

    def add_arguments_to_parser(self, parser: Parser) -> None:
        """Options of the run itself."""
        parser.add_argument("--name", type=str | None, default=None, help="the run's name; default: model and data set")
        parser.add_argument("--runs_folder", type=str, default="runs", help="where the folders of all runs lie")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="go on from a checkpoint: a file, 'last' for the last one of the run of this name, or 'auto' for the "
            "same where there is one, and a new run where there is none",
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=PositiveInt | None,
            default=None,
            help="write last.ckpt within epochs too, every so many optimiser steps",
        )
        for name in self.learned_from_data:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: Parser, args) -> None:
        """Parse the command line, with the embedded data's config where none is given."""
        given = list(sys.argv[1:] if args is None else args)
        given = self._find_configs(given)
        if not any(_is_config(argument) for argument in given):
            if any(argument.split("=")[0] == "--data.root" for argument in given):
                raise InputError(
                    f"--data.root without --config: give --config {self.task}/configs/finetune.yaml as well "
                    "(with no --config at all, training runs on the embedded data)"
                )
            given = ["--config", str(self.configs / self.embedded), *given]
        for name, follows in zip(given, [*given[1:], ""], strict=True):
            if _is_config(name):
                require_readable(Path(name.split("=", 1)[1] if "=" in name else follows))
        try:
            self.config = parser.parse_args(given)
        except (ValueError, ArithmeticError, AttributeError, RecursionError) as error:
            # jsonargparse passes on what YAML's reader fails with where a value is not of the type that it seems to be.
            raise InputError(f"a config or an option has a value that cannot be read ({error})") from error
        for group in ("model", "data", "trainer"):
            if not isinstance(self.config[group], Namespace):
                raise InputError(f"--{group} is {brief(self.config[group])}: give its options, as --{group}.NAME VALUE")
        for group, made in (("model", self.model_class), ("data", self.datamodule_class)):
            for name, parameter in inspect.signature(made).parameters.items():
                if self.config[group].get(name, "") is None and parameter.default is not None:
                    # jsonargparse lets null pass for anything
                    raise InputError(f"--{group}.{name} is null: give a value, or leave it out")
        require_transforms(self.config["data"].get("train_transforms"))
        seed = self.config["seed_everything"]
        if type(seed) is int and not 0 <= seed < 2**32:
            raise InputError(f"--seed_everything is {seed}: give a number from 0 to {2**32 - 1}")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a constructor's ValueError is about the options it was given."""
        try:
            super().instantiate_classes()
        except (InputError, FileNotFoundError):
            raise
        except ValueError as error:
            reason = textwrap.shorten(str(error), LONGEST_MESSAGE)
            raise InputError(f"an option's value cannot be used: {reason}") from error

    def instantiate_trainer(self, **kwargs) -> Trainer:
        """Build the trainer with the run's folder, loggers and callbacks."""
        options = self.config_init["trainer"]
        if options.get("sync_batchnorm") and (options.get("accelerator") == "cpu" or not torch.cuda.is_available()):
            raise InputError("--trainer.sync_batchnorm: PyTorch's SyncBatchNorm runs on GPUs alone; leave it out here")
        callbacks = [StepSeed(), StopOnNonFiniteLoss(), Throughput(), GradientNorm()]
        if options.get("enable_progress_bar") is not False:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
            callbacks.append(TrainingBar() if sys.stdout.isatty() else EpochLines())
        if options.get("fast_dev_run"):
            self.folder = self.report = self.resumed = None
        else:
            self.folder, step = self._choose_folder()
            kwargs["default_root_dir"] = str(self.folder.path)
            if options.get("logger") in (None, True):
                kwargs["logger"] = [
                    ContinuedCSVLogger(self.folder, step),
                    TensorBoardLogger(str(self.folder.path), name="", version="tensorboard"),
                ]
            self.report = RunReport(self.folder)
            callbacks += [self.report, *self._checkpoints(validates=options.get("limit_val_batches") != 0)]
        kwargs["callbacks"] = [*(options.get("callbacks") or []), *callbacks]
        plugins = options.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpointIO()]
        return super().instantiate_trainer(**kwargs)

    def _choose_folder(self) -> tuple[RunFolder, int | None]:
        """The run's folder, with its config in it, and the step that it goes on from."""
        runs = Path(self.config["runs_folder"])
        name = self.config["name"] or f"{self.model.label}-{self.datamodule.dataset_name}".replace("/", "-")
        named = RunFolder(runs / self.task / name)
        self.resumed = self.config["ckpt_path"]
        if self.resumed == "auto":
            self.resumed = "last" if named.has_checkpoint else None
        if self.resumed == "last":
            folder = RunFolder.resume(runs, self.task, name)
            self.resumed, step = self._last_whole(folder)
            if rank_zero_only.rank == 0:
                print(f"from   {self.resumed}, step {step}")
        elif rank_zero_only.rank != 0:
            return named, None  # the first process chooses; RunReport tells the others
        else:
            if self.resumed:
                self._require_same_run(Path(self.resumed), read_file(Path(self.resumed)))
            make = RunFolder.restart if self.config["ckpt_path"] == "auto" else RunFolder.create
            folder, step = make(runs, self.task, name), None
        name = "config.yaml" if step is None else "config.resumed.yaml"  # what the run began with stays
        self.parser.save(self.config, folder.path / name, overwrite=True, multifile=False)
        return folder, step

    def _last_whole(self, folder: RunFolder) -> tuple[Path, int]:
        """The last checkpoint of a run, or the one before where that is damaged, and its step."""
        damages = []
        for path in (folder.last, folder.previous):
            if not path.is_file():
                continue
            try:
                content = read_file(path)
            except InputError as error:
                damages.append(str(error))
                continue
            step = self._require_same_run(path, content)
            if damages and rank_zero_only.rank == 0:
                _logger.warning("%s. Going on from the one before, %s, of step %d", damages[0], path, step)
            return path, step
        raise InputError(f"no checkpoint to go on from is whole: {'; '.join(damages)}")

    def _require_same_run(self, checkpoint: Path, content: object) -> int:
        """The step that a checkpoint goes on from; InputError where model or classes are others."""
        try:
            theirs, step = dict(content["hyper_parameters"]), content["global_step"]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"--ckpt_path {checkpoint}: not a checkpoint of {self.task}.fit") from None
        for what in ("class_names", *self.model.architecture):
            if theirs.get(what) != self.model.hparams[what]:
                raise InputError(
                    f"--ckpt_path {checkpoint} was trained with {what} {theirs.get(what)}, this run has "
                    f"{self.model.hparams[what]}: give the options of that run, or start a new one from its weights "
                    "by --model.pretrained"
                )
        return step

    def _checkpoints(self, *, validates: bool) -> list[RunCheckpoint]:
        last = LastCheckpoint(self.folder, self.config["checkpoint_every_n_steps"])
        if not validates:
            return [last]
        best = RunCheckpoint(
            dirpath=self.folder.checkpoints,
            filename="best",
            monitor=self.model.monitor,
            mode="max",
            enable_version_counter=False,
        )
        return [best, last]

    def _find_configs(self, arguments: list[str]) -> list[str]:
        """Let the task's own configs be named where the repository's folders are not at hand: ``finetune.yaml``."""
        found = []
        for position, argument in enumerate(arguments):
            name = argument.split("=", 1)[1] if "=" in argument else argument
            follows = position > 0 and arguments[position - 1] in {"--config", "-c"}
            if (follows or (_is_config(argument) and "=" in argument)) and not Path(name).exists():
                packaged = self.configs / Path(name).name
                if Path(name).parent.as_posix() not in {".", f"{self.task}/configs"} or not packaged.is_file():
                    known = sorted(path.name for path in self.configs.glob("*.yaml"))
                    raise FileNotFoundError(f"no config {name}: {nearest(Path(name).name, known)}")
                argument = argument.replace(name, str(packaged))
            found.append(argument)
        return found


def _is_config(argument: str) -> bool:
    return argument in {"--config", "-c"} or argument.startswith(("--config=", "-c="))
