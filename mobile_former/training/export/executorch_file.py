"""Writing ExecuTorch programs that use XNNPACK's kernels on phones, and running them in ExecuTorch's runtime."""

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

from mobile_former.errors import InputError, first_line
from mobile_former.training.export.onnx_file import FORMAT, filled_batches, quietly, require_metadata
from mobile_former.training.extras import import_extra
from mobile_former.whole_file import write_whole

_METADATA = "metadata"  # name of the program's method that returns the metadata as JSON


def write_executorch(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """Write a module as an ExecuTorch program with fixed input sizes. This takes one to two minutes.

    Args:
        module: module in evaluation mode. The requirements for its ``forward`` are the same as in
            :func:`mobile_former.training.export.onnx_file.write_onnx`. The weights of the module are converted to
            contiguous memory format in place.
        inputs: example inputs on the CPU. Their sizes become the input sizes of the program.
        path: path of the file, in an existing folder.
        input_names: name of each input.
        output_names: name of each output.
        metadata: dictionary of JSON-serialisable values to store in the file. The key ``"task"`` is required.
            :attr:`ExecutorchModel.metadata` contains these values.

    Raises:
        InputError: the packages of the pip extra "executorch" are missing, or ExecuTorch cannot convert the module.
        OSError: the file cannot be written. An existing file stays as it was.
    """
    with quietly(), _without_stderr(), torch.no_grad():
        exir = _import("executorch.exir")
        xnnpack = _import("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        names = {"mobile_former_format": FORMAT, "inputs": list(input_names), "outputs": list(output_names)}
        module.to(memory_format=torch.contiguous_format)  # the only one that XNNPACK supports
        with _reported(path, "torch.export"):
            exported = torch.export.export(module, tuple(inputs))
        with _reported(path, "the conversion for XNNPACK"):
            edge = exir.to_edge_transform_and_lower(
                exported,
                partitioner=[xnnpack.XnnpackPartitioner()],
                constant_methods={_METADATA: json.dumps({**names, **metadata}, ensure_ascii=False)},
            )
        with _reported(path, "the conversion to a program"):
            content = edge.to_executorch().buffer
    write_whole(path, content)


class ExecutorchModel:
    """An ExecuTorch program that was written by :func:`write_executorch`, loaded to run on the CPU.

    All methods and attributes have the same meaning as in :class:`mobile_former.training.export.onnx_file.OnnxModel`.

    Args:
        path: path of the file.
        task: task that the file must have in its metadata: ``"classification"`` or ``"detection"``.

    Attributes:
        path: path of the file.
        metadata: dictionary of the metadata in the file, see :func:`write_executorch`.
        batch: number of images in each run of the program.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: ExecuTorch cannot be imported. Also raised if the file is damaged, or is not a program of this
            project and task.
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
                    f"{path} is damaged or not a program of this project's export: export it again"
                ) from error
        require_metadata(self.path, self.metadata, task)
        self.batch: int = self._forward.metadata.input_tensor_meta(0).sizes()[0]

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the program on one or more images, in batches of the program's fixed size.

        Args:
            inputs: one array for each input of the program. The first axis is the image.

        Returns:
            A dictionary from output name to array. The first axis is the image.
        """
        parts = [
            [output.numpy().copy() for output in self._forward.execute([torch.from_numpy(given) for given in part])]
            for part in self.batches(*inputs)
        ]
        count = len(inputs[0])
        names = self.metadata["outputs"]
        return {name: np.concatenate(values)[:count] for name, *values in zip(names, *parts, strict=True)}

    def batches(self, *inputs: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Split input arrays into batches of the program's fixed size.

        The last batch is padded with copies of its last image.

        Args:
            inputs: one array for each input of the program. The first axis is the image.

        Returns:
            An iterator over batches. Each batch is a list with one array for each input.
        """
        return filled_batches(inputs, self.batch)


def _import(package: str) -> ModuleType:
    return import_extra(package, "executorch", "a .pte file needs ExecuTorch")


@contextmanager
def _reported(path: Path, stage: str) -> Iterator[None]:
    """Context manager that converts any exception inside it to an InputError with a message of one line."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"cannot write {path}: {stage} failed with {type(error).__name__}: {first_line(error)}"
        ) from error


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Context manager that discards messages that native libraries write directly to the standard error."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
