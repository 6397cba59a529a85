"""Writing LiteRT files (``.tflite``), and running them in LiteRT's interpreter."""

import contextlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobile_former.training.export.fixed_model import FixedModel, metadata_text, reported, without_stderr
from mobile_former.training.export.onnx_file import quietly
from mobile_former.training.export.program_file import METADATA
from mobile_former.training.extras import import_extra


def write_litert(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """Write a module as a LiteRT file with fixed input sizes. This takes about a minute.

    The metadata and the class names are appended as a zip archive with the members ``metadata.json`` and
    ``labels.txt``. LiteRT's own tools store additional files in the same way.

    The arguments are those of :func:`mobile_former.training.export.executorch_file.write_executorch`.

    Raises:
        InputError: the packages of the pip extra "litert" are missing, or LiteRT cannot convert the module.
    """
    # The conversion prints its progress.
    with quietly(), without_stderr(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        litert = _import("litert_torch")
        module.to(memory_format=torch.contiguous_format)
        with reported(path, "the conversion to LiteRT"):
            litert.convert(module, tuple(inputs)).export(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, metadata_text(input_names, output_names, metadata))
        archive.writestr("labels.txt", "\n".join(metadata.get("class_names", ())))


class LitertModel(FixedModel):
    """A file that was written by :func:`write_litert`, loaded to run on the CPU."""

    def load(self) -> tuple[str, int]:
        """Load the file. Return the metadata as JSON, and the batch size."""
        with zipfile.ZipFile(self.path) as archive:
            text = archive.read(METADATA).decode()
        with without_stderr():
            interpreter = _import("ai_edge_litert.interpreter").Interpreter(
                str(self.path), num_threads=torch.get_num_threads()
            )
            interpreter.allocate_tensors()
            self._run = interpreter.get_signature_runner()
        details = self._run.get_input_details()
        self._types = {name: details[name]["dtype"] for name in sorted(details)}  # args_0, args_1
        return text, int(details["args_0"]["shape"][0])

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the model once, with one array for each input. Return a list with one array for each output."""
        given = zip(self._types.items(), inputs, strict=True)
        outputs = self._run(**{name: values.astype(kind, copy=False) for (name, kind), values in given})
        return [outputs[name] for name in sorted(outputs)]  # output_0, output_1


def _import(package: str) -> ModuleType:
    return import_extra(package, "litert", "a .tflite file needs LiteRT")
