"""Checkpoints that are written whole or not at all."""

import io
import os
import shutil
from pathlib import Path

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mobile_former.training.run.folder import LAST, PREVIOUS
from mobile_former.whole_file import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint by :func:`write_whole`, and keeps the last but one.

    (Lightning's own goes through the system's temporary folder: a copy, where that is on another file system.)
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
        content = io.BytesIO()  # so that errors are those of the disk, not of torch's writer
        torch.save(checkpoint, content)

        def keep_previous() -> None:
            if path.name == LAST and path.is_file():
                _keep(path, path.with_name(PREVIOUS))

        try:
            write_whole(path, content.getbuffer(), kind="the checkpoint ", before_replace=keep_previous)
        except OSError as error:
            before = "The checkpoint that was there is as it was" if path.is_file() else "There was none before"
            raise OSError(f"{error}. {before}; make room, then go on with --ckpt_path last") from error


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name, by which it stays when the first is taken by another."""
    unfinished = previous.with_name(previous.name + ".part")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(path, unfinished)
    except OSError:  # a file system without links
        shutil.copyfile(path, unfinished)
    os.replace(unfinished, previous)
