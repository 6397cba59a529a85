"""Files of a classifier for several runtimes, and functions that run them on one thread."""

import importlib.util
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from experiments.runtimes import web
from mobile_former.errors import InputError
from mobile_former.training.export.fixed_model import without_stderr
from mobile_former.training.export.formats import IMPLEMENTATIONS
from mobile_former.training.export.onnx_file import quietly
from mobile_former.training.extras import import_extra

# Takes normalised images (1, 3, S, S), and returns logits (1, K).
Run = Callable[[np.ndarray], np.ndarray]

NCNN = ".ncnn.param"  # beside it, pnnx writes a .ncnn.bin file


@dataclass(frozen=True)
class Runtime:
    """A runtime, with the options that it is run with.

    Attributes:
        package: name of its Python package, or of Node.js's package ``onnxruntime-web``.
        suffix: suffix of the files that the runtime reads.
        open: function that takes the path of a file, loads the file, and returns a function. The returned function
            takes a normalised image ``(1, 3, S, S)`` and returns the logits ``(1, K)``.
    """

    package: str
    suffix: str
    open: Callable[[Path], Run]

    def is_installed(self) -> bool:
        """Return whether the package of the runtime is installed."""
        return web.is_installed() if self.package == web.PACKAGE else bool(importlib.util.find_spec(self.package))


def write_file(module: nn.Module, images: Tensor, path: Path) -> None:
    """Export a classifier to a file for a runtime.

    Args:
        module: classifier in evaluation mode. It may be modified.
        images: example of the classifier's input, ``(1, 3, S, S)``.
        path: path of the file, with the suffix of a :class:`Runtime`.

    Raises:
        InputError: a package is missing, or the conversion fails.
    """
    if path.name.endswith(NCNN):
        _write_ncnn(module, images, path)
    else:
        metadata = {"task": "classification", "model": "", "class_names": []}
        names = {"input_names": ["images"], "output_names": ["logits"]}
        IMPLEMENTATIONS[path.suffix].write(module, [images], path, **names, metadata=metadata)


def _write_ncnn(module: nn.Module, images: Tensor, path: Path) -> None:
    pnnx = import_extra("pnnx", "runtimes", "a file for ncnn needs pnnx")
    trace = path.with_name(path.name.removesuffix(NCNN) + ".pt")
    with quietly(), torch.no_grad():
        torch.jit.trace(module, images, check_trace=False).save(trace)
    shape = ",".join(map(str, images.shape))
    command = [pnnx.EXEC_PATH, trace.name, f"inputshape=[{shape}]", "fp16=0"]
    result = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    if result.returncode != 0 or not path.is_file():
        raise InputError(f"pnnx cannot convert {trace}: {result.stderr.strip()[-200:]}")


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _openvino(precision: str) -> Callable[[Path], Run]:
    def open_file(path: Path) -> Run:
        import openvino

        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
        model = openvino.Core().compile_model(path, "CPU", options)
        return lambda images: model(images)[0]

    return open_file


def _opencv(path: Path) -> Run:
    network = cv2.dnn.readNetFromONNX(str(path))

    def run(images: np.ndarray) -> np.ndarray:
        network.setInput(images)
        return network.forward()

    return run


def _ncnn(path: Path) -> Run:
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = 1
    # Half precision is the default, also on a PC, and changes the logits by about 1e-3 of their scale.
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, option, False)
    with without_stderr():
        network.load_param(str(path))
        network.load_model(str(path.with_suffix(".bin")))

    def run(images: np.ndarray) -> np.ndarray:
        extractor = network.create_extractor()
        planes = np.ascontiguousarray(images[0])  # ncnn.Mat does not keep the array alive
        extractor.input("in0", ncnn.Mat(planes))
        return np.array(extractor.extract("out0")[1])[None]

    return run


def _executorch(path: Path) -> Run:
    from executorch.extension.pybindings import portable_lib

    if portable_lib._threadpool_get_thread_count() > 1:  # a reset invalidates the programs that are loaded
        portable_lib._unsafe_reset_threadpool(1)
    return _exported(path)


def _exported(path: Path) -> Run:
    model = IMPLEMENTATIONS[path.suffix].read(path, "classification")
    return lambda images: model.run([images])[0]


RUNTIMES = {
    "ONNX Runtime": Runtime("onnxruntime", ".onnx", _onnxruntime),
    "ONNX Runtime Web": Runtime(web.PACKAGE, ".onnx", web.WebSession),
    "OpenVINO f32": Runtime("openvino", ".onnx", _openvino("f32")),
    "OpenVINO bf16": Runtime("openvino", ".onnx", _openvino("bf16")),
    "OpenCV": Runtime("cv2", ".onnx", _opencv),
    "ncnn": Runtime("ncnn", NCNN, _ncnn),
    "LiteRT": Runtime("litert_torch", ".tflite", _exported),
    "ExecuTorch": Runtime("executorch", ".pte", _executorch),
    "torch.export": Runtime("torch", ".pt2", _exported),
}


def size(path: Path) -> int:
    """Return the bytes of a file. For ncnn, this includes the file with the weights."""
    weights = path.with_suffix(".bin")
    return os.path.getsize(path) + (os.path.getsize(weights) if path.name.endswith(NCNN) else 0)


def processor_time() -> float:
    """Return the processor time of this process, and of ONNX Runtime Web's processes in their runs, in seconds."""
    return time.process_time() + web.WebSession.processor_seconds
