"""Start of a run: its folder, and the checkpoint that it resumes from."""

import logging
from pathlib import Path
from typing import NamedTuple

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from mobile_former.errors import InputError
from mobile_former.training.run.folder import RunFolder
from mobile_former.weights.files import read_file

_logger = logging.getLogger(__name__)


class RunStart(NamedTuple):
    """Where a run starts.

    Attributes:
        folder: folder of the run.
        checkpoint: checkpoint to resume from, if any.
        step: number of optimiser steps before ``checkpoint`` if the run continues in its old folder. None: new folder.
    """

    folder: RunFolder
    checkpoint: Path | None
    step: int | None


def start_run(runs: Path, task: str, name: str, ckpt_path: str | None, module: LightningModule) -> RunStart:
    """Choose the folder of a run and the checkpoint to resume from. Create the folder if it is new.

    Args:
        runs: folder of all runs.
        task: name of the task.
        name: name of the run.
        ckpt_path: value of ``--ckpt_path``: a file, ``"last"``, ``"auto"`` or None.
        module: module to train. The checkpoint must have the same classes and architecture.

    Raises:
        InputError: the name is not that of a single folder, or the checkpoint is damaged or of another model.
        FileNotFoundError: the checkpoint of ``ckpt_path`` does not exist.
    """
    named = RunFolder(runs / task / name)
    if ckpt_path == "last" or (ckpt_path == "auto" and named.has_checkpoint):
        folder = RunFolder.resume(runs, task, name)
        checkpoint, step = _last_whole_checkpoint(folder, task, module)
        if rank_zero_only.rank == 0:
            print(f"from   {checkpoint}, step {step}")
        return RunStart(folder, checkpoint, step)
    checkpoint = None if ckpt_path in (None, "auto") else Path(ckpt_path)
    if rank_zero_only.rank != 0:
        return RunStart(named, checkpoint, None)  # the first process creates the folder; RunReport sends its path
    if checkpoint is not None:
        _resumed_step(checkpoint, read_file(checkpoint), task, module)
    create = RunFolder.restart if ckpt_path == "auto" else RunFolder.create
    return RunStart(create(runs, task, name), checkpoint, None)


def _last_whole_checkpoint(folder: RunFolder, task: str, module: LightningModule) -> tuple[Path, int]:
    """Return path and step of the last checkpoint, or of the previous one if the last is damaged or missing."""
    damages = []
    for path in (folder.last, folder.previous):
        if not path.is_file():
            continue
        try:
            content = read_file(path)
        except InputError as error:
            damages.append(str(error))
            continue
        step = _resumed_step(path, content, task, module)
        if damages and rank_zero_only.rank == 0:
            _logger.warning("%s. Resuming from the previous checkpoint, %s, at step %d", damages[0], path, step)
        return path, step
    raise InputError(f"every checkpoint of the run is damaged: {'; '.join(damages)}")


def _resumed_step(checkpoint: Path, content: object, task: str, module: LightningModule) -> int:
    """Return the optimiser step of a checkpoint. Raise InputError if it has other classes or another architecture.

    Args:
        checkpoint: path of the checkpoint, for messages.
        content: content of the checkpoint.
        task: name of the task.
        module: module to train.
    """
    try:
        theirs, step = dict(content["hyper_parameters"]), content["global_step"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"--ckpt_path {checkpoint} is not a checkpoint of {task}.fit") from None
    for option in ("class_names", *module.architecture):
        if theirs.get(option) != module.hparams[option]:
            raise InputError(
                f"--ckpt_path {checkpoint} was trained with {option} {theirs.get(option)}, but this run has "
                f"{module.hparams[option]}: give the options of that run, or start a new run from its weights with "
                "--model.pretrained"
            )
    return step
