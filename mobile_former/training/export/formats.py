"""Writers and readers of the file formats that ``export`` writes."""

from collections.abc import Callable
from dataclasses import dataclass

from mobile_former.training.export.coreml_file import CoremlModel, write_coreml
from mobile_former.training.export.executorch_file import ExecutorchModel, write_executorch
from mobile_former.training.export.fixed_model import FixedModel
from mobile_former.training.export.litert_file import LitertModel, write_litert
from mobile_former.training.export.onnx_file import OnnxModel, write_onnx
from mobile_former.training.export.program_file import ProgramModel, write_program


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        write: function that writes a file, see :func:`mobile_former.training.export.onnx_file.write_onnx`.
        read: class that loads a file, see :class:`mobile_former.training.export.onnx_file.OnnxModel`.
    """

    write: Callable
    read: type[OnnxModel | FixedModel]


IMPLEMENTATIONS = {
    ".onnx": Format(write_onnx, OnnxModel),
    ".pte": Format(write_executorch, ExecutorchModel),
    ".pt2": Format(write_program, ProgramModel),
    ".tflite": Format(write_litert, LitertModel),
    ".mlpackage": Format(write_coreml, CoremlModel),
}
