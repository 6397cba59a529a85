"""Starting a training run: choosing its folder and the checkpoint to resume from."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from mobile_former.errors import InputError
from mobile_former.training.run.checkpoint import require_task
from mobile_former.training.run.folder import RunFolder
from mobile_former.training.run.given_callbacks import set_option
from mobile_former.weights.files import read_file

_logger = logging.getLogger(__name__)

# Options that must stay on or off: the state of the optimiser and the averaged weights in a checkpoint depend on it.
_SWITCHES = ("ema_decay", "freeze_backbone", "freeze_batch_norm")


class RunStart(NamedTuple):
    """Folder of a run that is about to start, and the checkpoint to resume from.

    Attributes:
        folder: folder of the run. It is either a new folder or the folder of an earlier run that is resumed.
        checkpoint: path of the checkpoint to resume from. None: training starts from the beginning.
        step: number of optimiser steps before ``checkpoint`` was written. None: ``folder`` is new.
        position: state of the data module in ``checkpoint``. ``{}``: there is none.
    """

    folder: RunFolder
    checkpoint: Path | None
    step: int | None
    position: Mapping[str, object] = MappingProxyType({})


def start_run(
    runs: Path,
    task: str,
    name: str,
    ckpt_path: str | None,
    module: LightningModule,
    datamodule: LightningDataModule,
    found: Sequence[str] = (),
) -> RunStart:
    """Choose the folder of a run and the checkpoint to resume from, and return both as a :class:`RunStart`.

    A new folder is created. The folder is locked, see :meth:`RunFolder.lock`. If there are several processes, only the
    first one creates and locks it.

    Args:
        runs: folder of all runs.
        task: ``"classification"`` or ``"detection"``, the name of a subfolder of ``runs``.
        name: name of the run.
        ckpt_path: value of ``--ckpt_path``. A path: resume from this file in a new folder. ``"last"``: resume the run
            of this name in its folder. ``"auto"``: resume like ``"last"`` if the run has a checkpoint, otherwise start
            a new run. None: start a new run.
        module: model to train. The checkpoint must have the same classes and architecture.
        datamodule: data module of the run. The options of ``module`` and ``datamodule`` that differ from those in the
            checkpoint are printed.
        found: names of the options that a finder of Lightning sets in a new run. They are the output of
            :func:`mobile_former.training.run.given_callbacks.found_options`. A resumed run takes their values from the
            checkpoint.

    Raises:
        InputError: ``name`` is not a valid folder name, or another process uses the folder. Also raised if the
            checkpoint is damaged or does not fit ``module``, or if another task of the array job started the run.
        FileNotFoundError: the checkpoint of ``ckpt_path`` does not exist.
    """
    named = RunFolder(runs / task / name)
    first = rank_zero_only.rank == 0
    if first and ckpt_path in ("last", "auto") and named.has_checkpoint:
        named.lock()
        named.require_same_array_task()
    if ckpt_path == "last" or (ckpt_path == "auto" and named.has_checkpoint):
        folder = RunFolder.resume(runs, task, name)
        checkpoint, content = _last_whole_checkpoint(folder, task, module, datamodule, found)
        return RunStart(folder, checkpoint, content["global_step"], _position(content, datamodule))
    checkpoint = None if ckpt_path in (None, "auto") else Path(ckpt_path)
    new = RunStart(named, checkpoint, None)  # the first process creates the folder; RunReport sends its path
    if not first and not found:
        return new
    if checkpoint is not None:
        if not checkpoint.exists():
            raise FileNotFoundError(
                f"--ckpt_path {checkpoint}: no such file. Give a checkpoint of a run, or 'last' to resume the run "
                f"{name!r}"
            )
        content = read_file(checkpoint)
        _require_fit(checkpoint, content, task, module, datamodule, found)
        new = new._replace(position=_position(content, datamodule))
    if not first:
        return new
    create = RunFolder.restart if ckpt_path == "auto" else RunFolder.create
    return new._replace(folder=create(runs, task, name))


def _last_whole_checkpoint(
    folder: RunFolder, task: str, module: LightningModule, datamodule: LightningDataModule, found: Sequence[str]
) -> tuple[Path, dict]:
    """Return a tuple of the path and the content of the newest undamaged checkpoint of a run.

    This is ``last.ckpt`` or, if that file is damaged or missing, ``previous.ckpt``. A checkpoint that Lightning's
    handler for SLURM has written is used if it is from a later step.

    Raises:
        InputError: all checkpoints of the run are damaged, or the checkpoint does not fit the run.
    """
    damages, whole = [], []
    for paths in ((folder.last, folder.previous), folder.requeued):
        for path in filter(Path.is_file, paths):
            try:
                whole.append((path, read_file(path)))
                break
            except InputError as error:
                damages.append(str(error))
    if not whole:
        raise InputError(f"every checkpoint of the run is damaged: {'; '.join(damages)}")
    path, content = max(whole, key=lambda each: each[1].get("global_step", -1) if isinstance(each[1], dict) else -1)
    _require_fit(path, content, task, module, datamodule, found)
    if damages and rank_zero_only.rank == 0:
        step = content["global_step"]
        _logger.warning("%s. Resuming from the previous checkpoint, %s, at step %d", damages[0], path, step)
    return path, content


def _position(content: dict, datamodule: LightningDataModule) -> Mapping[str, object]:
    return content.get(type(datamodule).__qualname__) or {}  # Lightning's key


def _require_fit(
    checkpoint: Path,
    content: object,
    task: str,
    module: LightningModule,
    datamodule: LightningDataModule,
    found: Sequence[str],
) -> None:
    """Check that a run can resume from a checkpoint.

    The first process also prints the optimiser step of the checkpoint, and the options of the run that differ from
    those in the checkpoint.

    Args:
        checkpoint: path of the checkpoint, for error messages.
        content: object loaded from the checkpoint file, usually a dictionary.
        task: ``"classification"`` or ``"detection"``, for error messages.
        module: model of the run.
        datamodule: data module of the run.
        found: names of the options that take their values from the checkpoint.

    Raises:
        InputError: the file is not a checkpoint of the task. Also raised if the model and the checkpoint differ in
            their classes, their architecture, the freezing of layers or the use of weight averaging.
    """
    try:
        theirs, step = dict(content["hyper_parameters"]), content["global_step"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"--ckpt_path {checkpoint} is not a checkpoint of {task}.fit") from None
    require_task(checkpoint, content.get("datamodule_hyper_parameters", {}), task)
    for option in ("class_names", *module.architecture, *_SWITCHES):
        before, now = theirs.get(option), module.hparams.get(option)
        if (bool(before) != bool(now)) if option in _SWITCHES else (before != now):
            raise InputError(
                f"--ckpt_path {checkpoint} was trained with {option} {before}, but this run has {now}: give the "
                "options of that run, or start a new run from its weights with --model.pretrained"
            )
    theirs |= content.get("datamodule_hyper_parameters", {})
    for option in found:
        set_option(module, datamodule, option, theirs[option])
    if rank_zero_only.rank == 0:
        print(f"from   {checkpoint}, step {step}")
        if changes := _changes(theirs, {**module.hparams, **datamodule.hparams}):
            print(f"new    {', '.join(changes)}")


def _changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return a list with one phrase for each changed option, such as ``"batch_size 64 (was 32)"``.

    Both arguments are dictionaries from option to value.
    """
    return [
        f"{name} {now[name]} (was {before[name]})"
        for name in sorted(before.keys() & now.keys())
        if name not in {"class_names", "category_ids"} and now[name] != before[name]
    ]
