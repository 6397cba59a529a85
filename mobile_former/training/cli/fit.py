"""The ``fit`` command. It extends Lightning's command line with run folders and a report of the run."""

import inspect
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
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from mobile_former.errors import InputError, first_line, nearest
from mobile_former.training.cli.command import folder_of
from mobile_former.training.cli.config_check import require_finite, require_transforms
from mobile_former.training.cli.lightning_parser import LightningParser
from mobile_former.training.cli.parser import LONGEST_MESSAGE, Parser
from mobile_former.training.data.splits import SPLIT_FILE
from mobile_former.training.data.timed_loader import loader_error
from mobile_former.training.processors import limit_threads
from mobile_former.training.run.checkpoint_io import WholeCheckpointIO
from mobile_former.training.run.folder import RunCheckpoint, array_task
from mobile_former.training.run.given_callbacks import FoundOptions, found_options, given_callbacks, without_finders
from mobile_former.training.run.last_checkpoint import LastCheckpoint
from mobile_former.training.run.progress import EpochLines, GradientNorm, StopOnNonFiniteLoss, Throughput, TrainingBar
from mobile_former.training.run.report import RunReport
from mobile_former.training.run.shared_cores import SharedCores
from mobile_former.training.run.start import start_run
from mobile_former.training.run.step_seed import StepSeed
from mobile_former.training.run.trackers import build_loggers, connect

# Raised by Lightning and torch for options that they find unusable only when training begins.
_OPTION_ERRORS = (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError)
_CONFIG_OPTIONS = ("--config", "-c")
_DATA_OPTIONS = ("--data.root", "--data.annotations", "--data.images")


class FitCLI(LightningCLI):
    """Command line that trains a model, scores it and writes the results to a run folder.

    Args:
        task: ``"classification"`` or ``"detection"``. The run folders of a task are in a subfolder of this name.
        model_class: LightningModule class of the task. Its constructor takes ``class_names``. The class has the
            attributes ``monitor`` (name of the score to maximise) and ``architecture`` (names of the options that
            determine the model's architecture), and the members that :class:`RunReport` uses.
        data_class: LightningDataModule class of the task. The class has ``class_names`` and the members that
            :class:`RunReport` uses, such as ``dataset_name``.
        configs: folder with the YAML configs of the task.
        embedded: file name of the config in ``configs`` that is used if the user gives neither a config nor data. It
            trains on images made from scikit-learn's digits, which need no files.
        fine_tuning: file name of the config in ``configs`` that is used if the user gives data, but no config.
        learned_from_data: names of attributes of the data module. The value of each attribute is passed to the argument
            of ``model_class`` with the same name.
    """

    def __init__(
        self,
        task: str,
        model_class: type[LightningModule],
        data_class: type[LightningDataModule],
        *,
        configs: Path,
        embedded: str,
        fine_tuning: str = "finetune.yaml",
        learned_from_data: Sequence[str] = ("class_names",),
    ):
        self.task = task
        self.configs = configs
        self.embedded = embedded
        self.fine_tuning = fine_tuning
        self.learned_from_data = learned_from_data
        super().__init__(
            model_class,
            data_class,
            save_config_callback=None,  # the config is saved in the run folder
            seed_everything_default=0,
            parser_class=LightningParser,
            parser_kwargs={"prog": f"python -m {task}.fit", "description": f"Train a model for {task}."},
            trainer_defaults={
                "log_every_n_steps": 10,
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the samplers of the data module split the data by process
            },
            run=False,
            auto_configure_optimizers=False,  # the module configures optimiser and schedule
        )

    def fit(self) -> None:
        """Train the model, score the best checkpoint, and write scores and pictures to the run folder.

        With ``--trainer.fast_dev_run``, the model is only trained, and nothing is scored or written.
        """
        try:
            self._fit()
        finally:  # in a notebook, the process continues
            if self.folder:
                self.folder.release()

    def _fit(self) -> None:
        try:
            self.trainer.fit(self.model, self.datamodule, ckpt_path=self.checkpoint, weights_only=True)
        except (InputError, OSError):
            if self.trainer.global_step == 0:
                self._remove_new_folder()
            raise
        except _OPTION_ERRORS as error:
            if self.trainer.world_size > 1 and _is_loss_of_peer(error):
                raise InputError(f"another process of the run has ended ({first_line(error)})") from error
            if lost := loader_error(error):
                raise lost from error
            if not self._is_refusal(error):
                raise
            self._remove_new_folder()
            reason = textwrap.shorten(str(error), LONGEST_MESSAGE)
            raise InputError(f"training cannot begin with these options: {reason}") from error
        except SystemExit as stop:  # a signal stopped the run, see LastCheckpoint
            if self.folder and self.folder.last.is_file() and self.trainer.is_global_zero:
                resume = f"--name {self.folder.path.name} --ckpt_path last"
                print(f"stopped; to resume, repeat the command with {resume}", file=sys.stderr)
            if stop.code is None:  # Lightning exits like this on SIGTERM; to a scheduler, status 0 means success
                sys.exit(128 + signal.SIGTERM)
            raise
        if self.report:
            self.report.finish(self.trainer, self.model, self.datamodule)

    def _is_refusal(self, error: Exception) -> bool:
        """Return whether Lightning or torch raised ``error`` before the first training batch.

        If so, the cause of the error is assumed to be an invalid option.
        """
        frame = error.__traceback__
        while frame.tb_next:
            frame = frame.tb_next
        raised_in = frame.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        loop = self.trainer.fit_loop.epoch_loop
        # Lightning validates some batches before training. An error in a batch is one of the model, not of an option.
        begun = loop.batch_progress.total.ready or loop.val_loop.batch_progress.total.ready
        return raised_in in {"pytorch_lightning", "lightning_fabric", "torch"} and not begun

    def _remove_new_folder(self) -> None:
        """Delete the folder of a new run in which nothing was trained, so that its name can be used again.

        The folder is kept if the run resumes from a checkpoint.
        """
        # Never delete the folder of a resumed run: global_step is 0 until the checkpoint is loaded.
        if self.folder and not self.checkpoint and rank_zero_only.rank == 0:
            shutil.rmtree(self.folder.path)

    # Parsing

    def add_arguments_to_parser(self, parser: Parser) -> None:
        """Add the options for the run folder and the checkpoints to the parser.

        For each name in ``learned_from_data``, the parser also passes this attribute of the data module to the argument
        of the model with the same name.
        """
        parser.add_argument(
            "--name", type=str | None, default=None, help="name of the run; default: names of the model and the data"
        )
        parser.add_argument("--runs_folder", type=str, default="runs", help="folder of all runs")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint to resume from: a file; 'last' for the last checkpoint of the run with this name; or "
            "'auto' for 'last' if that run has a checkpoint, otherwise a new run",
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=PositiveInt | None,
            default=None,
            help="number of optimiser steps after which last.ckpt is written, in addition to the end of each epoch",
        )
        parser.set_help("--seed_everything", "seed of all random numbers, or true for a random one")
        for name in self.learned_from_data:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: Parser, args) -> None:
        """Parse the command line and check the parsed values.

        The checks find invalid values that jsonargparse accepts.

        Raises:
            InputError: a value is invalid.
            FileNotFoundError: a config does not exist.
        """
        arguments = self._with_config_paths(sys.argv[1:] if args is None else args)
        try:
            self.config = parser.parse_args(arguments)
        except (ValueError, ArithmeticError, AttributeError, RecursionError) as error:
            # Raised for a file that is not UTF-8, for huge numbers, and for nesting without end.
            raise InputError(f"a config or an option has a value that cannot be read ({error})") from error
        for group in ("model", "data", "trainer"):
            if not isinstance(self.config[group], Namespace):
                raise InputError(f"--{group} is {brief(self.config[group])}: give its options as --{group}.NAME VALUE")
        for group, target in (("model", self.model_class), ("data", self.datamodule_class)):
            for name, parameter in inspect.signature(target).parameters.items():
                if self.config[group].get(name, "") is None and parameter.default is not None:
                    raise InputError(f"--{group}.{name} is null: give a value, or leave it out")
        require_transforms(self.config["data"].get("train_transforms"))
        seed = self.config["seed_everything"]
        if type(seed) is int and not 0 <= seed < 2**32:
            raise InputError(f"--seed_everything is {seed}: give a number from 0 to {2**32 - 1}")

    def _with_config_paths(self, arguments: Sequence[str]) -> list[str]:
        """Replace each config name in the command-line arguments by the path of the file. Return the new list.

        If no config is given, a config of the task is added: the one for fine-tuning if the options name data, and
        otherwise the one that trains on embedded data (made from scikit-learn's digits).

        Raises:
            InputError: a config has too many values after its YAML aliases are expanded.
            FileNotFoundError: a config does not exist.
        """
        found: list[str] = []
        for argument in arguments:
            option, equals, value = argument.partition("=")
            found += [option, value] if equals and option in _CONFIG_OPTIONS else [argument]
        if not any(argument in _CONFIG_OPTIONS for argument in found):
            own_data = any(argument.split("=")[0].startswith(_DATA_OPTIONS) for argument in found)
            found = ["--config", str(self.configs / (self.fine_tuning if own_data else self.embedded)), *found]
        for position, argument in enumerate(found[:-1]):
            if argument in _CONFIG_OPTIONS:
                found[position + 1] = self._config_path(found[position + 1])
                require_finite(Path(found[position + 1]))
        return found

    def _config_path(self, name: str) -> str:
        """Return the path of a config file.

        Args:
            name: path of an existing file, or the name of a file in the task's folder of configs.

        Raises:
            FileNotFoundError: there is no such config.
        """
        if Path(name).exists():
            return name
        own = self.configs / Path(name).name
        if Path(name).parent.as_posix() in {".", f"{self.task}/configs"} and own.is_file():
            return str(own)
        known = sorted(path.name for path in self.configs.glob("*.yaml"))
        raise FileNotFoundError(f"no config {name}: {nearest(Path(name).name, known)}")

    # Building

    def instantiate_classes(self) -> None:
        """Build the data module, the model and the trainer.

        Raises:
            InputError: a constructor raised a ValueError.
        """
        logger = self.config["trainer"]["logger"]
        self.config["trainer"]["logger"] = None  # built later, because a tracker takes the name of the run's folder
        self._logger = logger
        try:
            super().instantiate_classes()
        except (InputError, FileNotFoundError):
            raise
        except ValueError as error:
            reason = textwrap.shorten(str(error), LONGEST_MESSAGE)
            raise InputError(f"the value of an option is invalid: {reason}") from error

    def instantiate_trainer(self, **kwargs) -> Trainer:
        """Build the trainer with the run folder, the loggers and the callbacks."""
        self.config["trainer"]["logger"] = self._logger
        options = self.config_init["trainer"]
        if options.get("sync_batchnorm") and (options.get("accelerator") == "cpu" or not torch.cuda.is_available()):
            raise InputError("--trainer.sync_batchnorm: PyTorch's SyncBatchNorm needs a GPU; leave it out here")
        callbacks: list[Callback] = [StepSeed(), StopOnNonFiniteLoss(), Throughput(), GradientNorm(), SharedCores()]
        if options.get("enable_progress_bar") is not False:
            kwargs["enable_progress_bar"] = sys.stdout.isatty()
            callbacks += [TrainingBar(), EpochLines()] if sys.stdout.isatty() else [EpochLines()]
        given = given_callbacks(options.get("callbacks"))
        if options.get("fast_dev_run"):
            self.folder = self.report = self.checkpoint = None
            self._position = {}
        else:
            found = found_options(given)
            step = self._start_run(found)
            if self.checkpoint:  # its values were found when the run began
                given = without_finders(given)
            elif found:
                used = {
                    "batch_size": self.datamodule.hparams.batch_size,
                    "learning_rate": self.model.hparams.learning_rate,
                }
                given = [*given, FoundOptions(used, self._record)]
            kwargs["default_root_dir"] = str(self.folder.path)
            kwargs["logger"] = self._build_loggers(step)
            self.report = RunReport(self.folder)
            callbacks += [self.report, *self._checkpoint_callbacks(validates=options.get("limit_val_batches") != 0)]
        kwargs["callbacks"] = [*given, *callbacks]
        plugins = options.get("plugins") or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), WholeCheckpointIO()]
        try:
            trainer = super().instantiate_trainer(**kwargs)
            # The first process checks this alone, before it starts the others: they would all print the error.
            self.datamodule.require_same_batches(self._position, trainer.world_size)
            limit_threads(trainer.num_devices)
            connect(trainer.loggers)
            return trainer
        except Exception as error:
            self._remove_new_folder()
            if self.folder:
                self.folder.release()
            if isinstance(error, MisconfigurationException) and "backend found" in str(error):
                raise InputError(f"--trainer.accelerator: {first_line(error)} Leave it out, or give cpu") from error
            if isinstance(error, RuntimeError):  # such as SLURM's options, which Lightning reads from the environment
                raise InputError(f"cannot train: {textwrap.shorten(str(error), LONGEST_MESSAGE)}") from error
            raise

    def _build_loggers(self, step: int | None) -> list[Logger] | bool:
        try:
            return build_loggers(self._logger, self.folder, step)
        except InputError:
            self._remove_new_folder()
            self.folder.release()
            raise

    def _start_run(self, found: Sequence[str]) -> int | None:
        """Choose the run folder and the checkpoint to resume from, and save the config in the folder.

        ``found`` has the names of the options that a callback determines, such as a batch size finder. If the run
        resumes from a checkpoint, these options get their values from it. Return the optimiser step of the checkpoint,
        or None if the run does not resume.
        """
        default = f"{self.model.label}-{self.datamodule.dataset_name}".replace("/", "-")
        if task := array_task():
            default += f"-{task.partition('_')[2]}"
        name = self.config["name"] or default
        runs = Path(self.config["runs_folder"])
        self.folder, self.checkpoint, step, self._position = start_run(
            runs, self.task, name, self.config["ckpt_path"], self.model, self.datamodule, found
        )
        if self.checkpoint:
            self._set_in_config({name: {**self.model.hparams, **self.datamodule.hparams}[name] for name in found})
        earlier = self.checkpoint and folder_of(self.checkpoint) / SPLIT_FILE
        self.datamodule.keep_split(self.folder.path / SPLIT_FILE, earlier)
        if rank_zero_only.rank == 0:
            self.folder.write_config(self.parser.dump(self.config), resumed=step is not None)
        return step

    def _record(self, found: dict[str, float]) -> None:
        """Write found option values to the config of a new run.

        Args:
            found: dictionary from option to the value that a Lightning callback, such as LearningRateFinder, has found.
        """
        self._set_in_config(found)
        self.folder.write_config(self.parser.dump(self.config), resumed=False)

    def _set_in_config(self, found: dict[str, float]) -> None:
        for name, value in found.items():
            self.config["model" if name == "learning_rate" else "data"][name] = value

    def _checkpoint_callbacks(self, *, validates: bool) -> list[RunCheckpoint]:
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


def _is_loss_of_peer(error: Exception) -> bool:
    """Return whether torch has raised ``error`` because another process of the run has ended."""
    return isinstance(error, torch.distributed.DistBackendError) or " by peer" in str(error)  # NCCL, or gloo
