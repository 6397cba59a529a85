"""Lightning plugin that writes each checkpoint completely or not at all."""

import io
import os
import shutil
from pathlib import Path

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mobile_former.training.run.folder import LAST, PREVIOUS, REQUEUED
from mobile_former.whole_file import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning plugin that writes each checkpoint completely or not at all.

    Before ``last.ckpt`` is replaced, the old file is kept as ``previous.ckpt``. Lightning's own plugin writes to the
    system's temporary folder first and then moves the file. Between two file systems this move is a copy, which can
    stop half-way.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: dictionary with the content of the checkpoint.
            path: path of a local file.
            storage_options: not used. The argument is part of Lightning's interface.

        Raises:
            OSError: the file cannot be written. An existing checkpoint stays as it was.
        """
        path = Path(path)
        content = io.BytesIO()  # serialised in memory first, so that only the disk can cause an OSError
        torch.save(checkpoint, content)

        def keep_previous(unfinished: Path) -> None:
            if path.name == LAST and path.is_file():
                _keep(path, path.with_name(PREVIOUS))

        try:
            write_whole(path, content.getbuffer(), kind="the checkpoint ", before_replace=keep_previous)
        except OSError as error:
            advice = "There is no earlier checkpoint; free disk space and start again"
            if path.is_file():
                advice = "The earlier checkpoint is unchanged; free disk space, then resume with --ckpt_path last"
            raise OSError(f"{error}. {advice}") from error
        if path.name == LAST:  # the new checkpoint replaces those of Lightning's own handler for SLURM
            for older in path.parent.parent.glob(REQUEUED):
                older.unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Create a hard link ``previous`` to the file ``path``, or a copy if hard links are not supported.

    When a new file replaces ``path``, the old content is then still available as ``previous``.
    """
    unfinished = previous.with_name(previous.name + ".part")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(path, unfinished)
    except OSError:  # the file system has no hard links
        shutil.copyfile(path, unfinished)
    os.replace(unfinished, previous)
