import errno

import torch

from mobile_former.training.run import checkpoint_io
from mobile_former.training.run.checkpoint_io import WholeCheckpointIO


def test_a_new_last_checkpoint_keeps_the_previous_one(tmp_path):
    writer, path = WholeCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    for step in range(3):
        writer.save_checkpoint({"step": step}, path)
        assert torch.load(path, weights_only=True) == {"step": step}
    assert torch.load(path.with_name("previous.ckpt"), weights_only=True) == {"step": 1}
    assert sorted(found.name for found in path.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_without_hard_links_the_previous_checkpoint_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(checkpoint_io.os, "link", refuse)
    writer, path = WholeCheckpointIO(), tmp_path / "last.ckpt"
    for step in range(2):
        writer.save_checkpoint({"step": step}, path)
    assert torch.load(path.with_name("previous.ckpt"), weights_only=True) == {"step": 0}
