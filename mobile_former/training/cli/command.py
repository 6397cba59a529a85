"""Helper functions of the commands: run a command, report errors, create the output folder, configure log messages."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from mobile_former.errors import InputError
from mobile_former.training.processors import limit_threads

_created_folders: list[Path] = []  # folders that require_writable created, parents first


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run the ``main`` function of a command and exit the process.

    An error in the user's input is printed in one line, and the exit status is 1. Ctrl-C exits with status 130. If the
    command fails, the empty folders that :func:`require_writable` created are removed.

    If PyTorch has been imported, this function limits its threads. A command that imports PyTorch only after printing
    its help must call :func:`limit_threads` itself.
    """
    quieten()
    if "torch" in sys.modules:
        limit_threads()
    _created_folders.clear()
    try:
        try:
            main()
        except BaseException:  # SystemExit and KeyboardInterrupt too
            for folder in reversed(_created_folders):
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()
            raise
        torch = sys.modules.get("torch")
        if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # otherwise its threads can abort the process at its end
    except BrokenPipeError:
        # The reader of the output has closed it. Without this, Python reports an error when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, (InputError, OSError, *_lightning_errors())):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _lightning_errors() -> list[type[Exception]]:
    """Return a list with the exception class that Lightning raises for invalid options; ``[]`` without Lightning."""
    module = sys.modules.get("pytorch_lightning.utilities.exceptions")
    return [module.MisconfigurationException] if module else []


def require_writable(path: Path) -> None:
    """Create the parent folder of an output file.

    Commands call this function first, so that a wrong path is reported before the results are computed.

    Raises:
        InputError: ``path`` is a folder, or its parent folder cannot be created.
    """
    missing = [folder for folder in (path.parent, *path.parent.parents) if not os.path.lexists(folder)]
    try:
        _created_folders.extend(reversed(missing))
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror} at {error.filename}") from error
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file name")


def folder_of(checkpoint: str | Path) -> Path:
    """Return the run folder of a checkpoint file.

    The checkpoints of a run are in the subfolder ``checkpoints`` of its run folder. If the file is not in a folder of
    this name, the folder of the file is returned.
    """
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" else folder


def exit_if_unreadable(errors: Sequence[str], total: int) -> None:
    """Print error messages about unreadable images and exit with status 1. Do nothing if there are no messages.

    Args:
        errors: one message for each unreadable image.
        total: number of all images, readable or not.
    """
    if errors:
        for error in errors:
            print(f"error: {error}", file=sys.stderr)
        print(f"error: {len(errors)} of {total} images could not be read", file=sys.stderr)
        sys.exit(1)


def quieten(stream: TextIO | None = None) -> None:
    """Configure logging and warnings to show only messages that a user can act on.

    Args:
        stream: stream of the log messages. None: stderr. In a notebook, pass stdout, so that messages look like other
            output.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=stream)
    for name in ("mobile_former", "classification", "detection"):
        logging.getLogger(name).setLevel(logging.INFO)
    # Lightning logs unused devices and advertisements.
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What a user has asked for: the table of a profiler or of the layers, and the messages of verbose early stopping.
    for name in ("profilers", "callbacks.model_summary", "callbacks.early_stopping"):
        logging.getLogger(f"pytorch_lightning.{name}").setLevel(logging.INFO)
    for message in (
        ".*does not have many workers.*",  # the default number of workers is chosen for the machine
        ".*number of training batches.*smaller than the logging interval.*",  # a small data set is not a mistake
        ".*Checkpoint directory .* exists and is not empty.*",  # the folder of a resumed run
        ".*dataloader is not resumable.*",  # the data module resumes within an epoch, see ImageData
        ".*in eval mode at the start of training.*",  # a frozen backbone
        ".*loading a checkpoint outside the 'fit' stage.*",  # the scored checkpoint already holds averaged weights
        "(?s).*Unable to serialize instance.*",  # an argument of a callback that is an object, such as a torch.device
        "(?s).*does not round-trip.*",  # a tuple comes back as a list, which is accepted
        ".*isinstance.treespec, LeafSpec.*",  # a deprecation inside of torch
    ):
        warnings.filterwarnings("ignore", message=message)
    # Lightning uses deprecated names of jsonargparse.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(pytorch_lightning|jsonargparse)\b.*")
