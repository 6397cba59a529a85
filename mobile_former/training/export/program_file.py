"""Writing programs of ``torch.export`` (``.pt2``), and running them in PyTorch."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobile_former.training.export.fixed_model import FixedModel, metadata_text, reported
from mobile_former.training.export.onnx_file import quietly
from mobile_former.whole_file import write_whole

METADATA = "metadata.json"  # name of the metadata in the file


def write_program(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> torch.export.ExportedProgram:
    """Write a module as a program of ``torch.export`` with fixed input sizes, and return the program.

    The arguments are those of :func:`mobile_former.training.export.executorch_file.write_executorch`.

    Raises:
        InputError: ``torch.export`` does not support the module.
        OSError: the file cannot be written. An existing file stays as it was.
    """
    module.to(memory_format=torch.contiguous_format)
    with quietly(), torch.no_grad(), reported(path, "torch.export"):
        program = torch.export.export(module, tuple(inputs))
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={METADATA: metadata_text(input_names, output_names, metadata)})
    write_whole(path, content.getvalue())
    return program


class ProgramModel(FixedModel):
    """A program that was written by :func:`write_program`, loaded to run in PyTorch on the CPU."""

    def load(self) -> tuple[str, int]:
        """Load the program. Return the metadata as JSON, and the batch size."""
        files = {METADATA: ""}
        with quietly():
            program = torch.export.load(self.path, extra_files=files)
        self._module = program.module()
        first = program.graph_signature.user_inputs[0]
        (node,) = (node for node in program.graph.nodes if node.name == first)
        return files[METADATA], int(node.meta["val"].shape[0])

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the program once, with one array for each input. Return a list with one array for each output."""
        with torch.no_grad():
            outputs = self._module(*map(torch.from_numpy, inputs))
        return [output.numpy() for output in ((outputs,) if isinstance(outputs, Tensor) else outputs)]
