"""Models as ExecuTorch programs for phones: written with XNNPACK's kernels, run by ExecuTorch's own runtime."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobile_former.errors import InputError
from mobile_former.training.export.onnx_file import FORMAT, filled_batches, quietly, require_metadata
from mobile_former.training.extras import import_extra
from mobile_former.whole_file import write_whole

_METADATA = "metadata"  # the method of the program that gives it, as JSON


def write_executorch(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """Write a module as an ExecuTorch program of fixed sizes; whole or not at all. It takes a minute or two.

    Args:
        module: in evaluation mode; as of :func:`mobile_former.training.export.onnx_file.write_onnx`. The memory of its
            weights is put in PyTorch's usual order.
        inputs: examples on the CPU, of the sizes that the program will take.
        path: the file to write; its folder exists.
        input_names: one for each input.
        output_names: one for each output.
        metadata: what :attr:`ExecutorchModel.metadata` gives back, of plain types (JSON's); ``"task"`` among them.

    Raises:
        InputError: the extra ``executorch`` is missing, or ExecuTorch cannot make a program of the module.
        OSError: the file cannot be written; what lay there before still does.
    """
    with quietly(), _without_stderr(), torch.no_grad():
        exir = _import("executorch.exir")
        xnnpack = _import("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        names = {"mobile_former_format": FORMAT, "inputs": list(input_names), "outputs": list(output_names)}
        module.to(memory_format=torch.contiguous_format)  # XNNPACK takes no other
        with _telling(path, "torch.export"):
            exported = torch.export.export(module, tuple(inputs))
        with _telling(path, "the conversion for XNNPACK"):
            edge = exir.to_edge_transform_and_lower(
                exported,
                partitioner=[xnnpack.XnnpackPartitioner()],
                constant_methods={_METADATA: json.dumps({**names, **metadata}, ensure_ascii=False)},
            )
        with _telling(path, "the writing of the program"):
            content = edge.to_executorch().buffer
    write_whole(path, content)


class ExecutorchModel:
    """A program of :func:`write_executorch`, run on the CPU. It is used as ``OnnxModel`` is.

    Args:
        path: the file.
        task: of which it has to be.

    Attributes:
        path: the file.
        metadata: what it was written with.
        batch: images that it takes at once.

    Raises:
        FileNotFoundError: no such file.
        InputError: no program of this project and task, or a damaged one.
    """

    def __init__(self, path: str | Path, task: str):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no ExecuTorch file {path} (looked from {os.getcwd()})")
        with quietly(), _without_stderr():
            runtime = _import("executorch.runtime")
            try:
                program = runtime.Runtime.get().load_program(self.path)
                (text,) = program.load_method(_METADATA).execute([])
                self._forward = program.load_method("forward")
                self.metadata = dict(json.loads(text))
            except Exception as error:
                raise InputError(
                    f"{path} is no program of this project's export, or damaged: export it again"
                ) from error
        require_metadata(self.path, self.metadata, task)
        self.batch: int = self._forward.metadata.input_tensor_meta(0).sizes()[0]

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the program as often as the batch needs, one image or more; the outputs by name."""
        parts = [
            [output.numpy().copy() for output in self._forward.execute([torch.from_numpy(given) for given in part])]
            for part in self.batches(*inputs)
        ]
        count = len(inputs[0])
        names = self.metadata["outputs"]
        return {name: np.concatenate(values)[:count] for name, *values in zip(names, *parts, strict=True)}

    def batches(self, *inputs: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Inputs in batches that the program takes; the last is filled up with its last image."""
        return filled_batches(inputs, self.batch)


def _import(package: str) -> ModuleType:
    return import_extra(package, "executorch", "a .pte file needs ExecuTorch")


@contextmanager
def _telling(path: Path, stage: str) -> Iterator[None]:
    """Tell a failure of torch's or ExecuTorch's own, of whatever type, in a line."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(f"cannot write {path}: {stage} failed with {type(error).__name__}: {reason}") from error


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Leave out what native libraries write past Python, on machines whose processors they know little of."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
