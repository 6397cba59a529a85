"""The file formats that ``export`` can write."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import Namespace

from mobile_former.errors import InputError
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
        title: name in the table that compares the file with PyTorch.
        write: function that writes a file, see :func:`mobile_former.training.export.onnx_file.write_onnx`.
        read: class that loads a file, see :class:`mobile_former.training.export.onnx_file.OnnxModel`.
    """

    title: str
    write: Callable
    read: type[OnnxModel | FixedModel]


FORMATS = {
    ".onnx": Format("ONNX", write_onnx, OnnxModel),
    ".pte": Format("ExecuTorch", write_executorch, ExecutorchModel),
    ".pt2": Format("torch.export", write_program, ProgramModel),
    ".tflite": Format("LiteRT", write_litert, LitertModel),
    ".mlpackage": Format("Core ML, before the conversion", write_coreml, CoremlModel),
}


def require_format(output: Path, options: Namespace, only_onnx: Iterable[str]) -> None:
    """Check that the ending of a file name is known, and that the options fit it.

    Args:
        output: path of the file.
        options: parsed options of the command.
        only_onnx: options that must be off for all formats except ONNX.

    Raises:
        InputError: the ending is unknown, or an option does not fit it.
    """
    if output.suffix not in FORMATS:
        *most, last = FORMATS
        raise InputError(f"--output {output}: give a name that ends in {', '.join(most)} or {last}")
    for name in only_onnx:
        if output.suffix != ".onnx" and options[name]:
            raise InputError(f"--{name} is only for ONNX files, but {output} is none: leave it out")
    if output.suffix == ".mlpackage" and (options.preprocessing or options.batch_size != 1):
        raise InputError(f"{output} takes one image and normalises it: leave out --preprocessing and --batch_size")
