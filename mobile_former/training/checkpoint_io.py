"""Checkpoints that are written whole or not at all."""

import io
import os
import shutil
import zipfile
from pathlib import Path

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mobile_former.errors import InputError
from mobile_former.training.run_folder import LAST, PREVIOUS
from mobile_former.weights import read_file


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there once the disk has it.

    So whoever looks sees the old one or the new one, whenever the process or the machine ends. (Lightning's own goes
    through the system's temporary folder: a copy, where that is on another file system.) The last checkpoint but one
    is kept.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: what Lightning wants to keep.
            path: a local file.
            storage_options: Lightning's, of no use here.

        Raises:
            OSError: it cannot be written; what lay there before still does.
        """
        path = Path(path)
        unfinished = path.with_name(path.name + ".part")
        content = io.BytesIO()  # so that errors are those of the disk, not of torch's writer
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.is_file():
                _keep(path, path.with_name(PREVIOUS))
            os.replace(unfinished, path)
            _sync(path.parent)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            before = "The checkpoint that was there is as it was" if path.is_file() else "There was none before"
            raise OSError(
                f"cannot write the checkpoint {path}: {error.strerror or error}. {before}; make room, then go on with "
                "--ckpt_path last"
            ) from error


def read_whole(path: Path) -> object:
    """A checkpoint's content, every byte of which is as it was written: torch.load alone looks at no checksum.

    Raises:
        InputError: it is damaged.
    """
    content = read_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise InputError(f"{path} is cut short or damaged (the checksum of {damaged} is another)")
    return content


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, by which it stays when the first is taken by another."""
    unfinished = previous.with_name(previous.name + ".part")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(path, unfinished)
    except OSError:  # a file system without links
        shutil.copyfile(path, unfinished)
    os.replace(unfinished, previous)


def _sync(folder: Path) -> None:
    """Let the disk know the folder's new names too, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
