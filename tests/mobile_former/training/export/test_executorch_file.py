"""Tests with a stand-in for ExecuTorch, which few machines have."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mobile_former import InputError
from mobile_former.training.export.executorch_file import write_executorch


@pytest.fixture
def stages(monkeypatch):
    """A stand-in for ExecuTorch with replaceable stages. Its program is ``b"program"``."""
    stages = SimpleNamespace()
    stages.to_executorch = lambda: SimpleNamespace(buffer=b"program")
    stages.lower = lambda exported, **options: SimpleNamespace(to_executorch=lambda: stages.to_executorch())
    exir = ModuleType("executorch.exir")
    exir.to_edge_transform_and_lower = lambda *arguments, **options: stages.lower(*arguments, **options)
    folding = ModuleType("executorch.exir.passes.constant_prop_pass")
    folding.constant_prop_pass = lambda exported: exported
    partitioner = ModuleType("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    partitioner.XnnpackPartitioner = object
    configs = ModuleType("executorch.backends.xnnpack.utils.configs")
    configs.get_transform_passes = list
    for module in (exir, configs, folding, partitioner):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return stages


def write(path, module=None):
    write_executorch(
        module or torch.nn.ReLU(),
        [torch.zeros(1, 3)],
        path,
        input_names=["x"],
        output_names=["y"],
        metadata={"task": "classification"},
    )


def fail(*_, **__):
    raise RuntimeError("no kernel for aten::x\nand a hundred lines")


class Unexportable(torch.nn.Module):
    """A module with data-dependent control flow, which torch.export does not support."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_the_program_is_written(stages, tmp_path):
    write(tmp_path / "x.pte")
    assert (tmp_path / "x.pte").read_bytes() == b"program"


@pytest.mark.parametrize(
    ("stage", "name"), [("lower", "the conversion for XNNPACK"), ("to_executorch", "the conversion to a program")]
)
def test_the_error_for_a_failure_of_executorch_names_file_stage_and_reason(stages, tmp_path, stage, name):
    setattr(stages, stage, fail)
    with pytest.raises(InputError) as error:
        write(tmp_path / "x.pte")
    assert str(error.value) == (
        f"cannot write {tmp_path / 'x.pte'}: {name} failed with RuntimeError: no kernel for aten::x"
    )
    assert not list(tmp_path.iterdir())


def test_a_module_that_cannot_be_exported_is_an_error(stages, tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*x\.pte: torch\.export failed with \w+: "):
        write(tmp_path / "x.pte", Unexportable())
