"""Writing ExecuTorch programs that use XNNPACK's kernels on phones, and running them in ExecuTorch's runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobile_former.training.export.fixed_model import FixedModel, metadata_text, reported, without_stderr
from mobile_former.training.export.onnx_file import quietly
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
    with quietly(), without_stderr(), torch.no_grad():
        exir = _import("executorch.exir")
        xnnpack = _import("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        configs = _import("executorch.backends.xnnpack.utils.configs")
        folding = _import("executorch.exir.passes.constant_prop_pass")
        module.to(memory_format=torch.contiguous_format)  # the only one that XNNPACK supports
        with reported(path, "torch.export"):
            # XNNPACK takes linear layers whose weight is a constant, not a transposed one.
            exported = folding.constant_prop_pass(torch.export.export(module, tuple(inputs)))
        with reported(path, "the conversion for XNNPACK"):
            edge = exir.to_edge_transform_and_lower(
                exported,
                transform_passes=configs.get_transform_passes(),  # they remove copies that change nothing
                partitioner=[xnnpack.XnnpackPartitioner()],
                constant_methods={_METADATA: metadata_text(input_names, output_names, metadata)},
            )
        with reported(path, "the conversion to a program"):
            content = edge.to_executorch().buffer
    write_whole(path, content)


class ExecutorchModel(FixedModel):
    """An ExecuTorch program that was written by :func:`write_executorch`, loaded to run on the CPU."""

    def load(self) -> tuple[str, int]:
        """Load the program. Return the metadata as JSON, and the batch size."""
        with quietly(), without_stderr():
            program = _import("executorch.runtime").Runtime.get().load_program(self.path)
            (text,) = program.load_method(_METADATA).execute([])
            self._forward = program.load_method("forward")
        return text, self._forward.metadata.input_tensor_meta(0).sizes()[0]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the program once, with one array for each input. Return a list with one array for each output."""
        return [
            output.numpy().copy() for output in self._forward.execute([torch.from_numpy(given) for given in inputs])
        ]


def _import(package: str) -> ModuleType:
    return import_extra(package, "executorch", "a .pte file needs ExecuTorch")
