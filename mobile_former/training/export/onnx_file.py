"""Models as ONNX files: written from PyTorch, run by onnxruntime, and their convolutions in int8.

A file is whole in itself: its metadata tells what a model was trained to tell apart and how it wants its images, so
that nothing else is needed to use it.
"""

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobile_former.errors import InputError
from mobile_former.training.extras import import_extra
from mobile_former.whole_file import write_whole

OPSET = 20  # the first with Gelu, which is five nodes before; what runs on phones is often a few opsets behind
FORMAT = 1  # of the metadata; goes up where a reader of before would misunderstand

_FORMAT_KEY = "mobile_former_format"


def write_onnx(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_axes: Sequence[Mapping[int, str]] | None = None,
    translations: Mapping[Callable, Callable] | None = None,
    preparation: str | None = None,
    metadata: Mapping[str, Any],
) -> None:
    """Write a module as one self-contained ONNX file; whole or not at all.

    Args:
        module: in evaluation mode; its ``forward`` takes the inputs by position and returns a tensor or a tuple of
            tensors. By convention the first axis of every input and output is the batch.
        inputs: examples on the CPU. An axis that is dynamic must be 2 or more here, as the exporter takes 1 for a
            number that always stays 1; the others keep the sizes that they have here.
        path: the file to write; its folder exists.
        input_names: one for each input.
        output_names: one for each output.
        dynamic_axes: for each input the axes that may have any size, and a name for each size (or its
            ``torch.export.Dim``); the same name is the same size. None: all sizes are fixed.
        translations: of operations of the module's own, as ``torch.onnx.export`` takes them.
        preparation: a model in ONNX's text form to come before the module, whose inputs are those of its outputs, in
            this order; then the file has its inputs.
        metadata: what :attr:`OnnxModel.metadata` gives back, of plain types (JSON's); ``"task"`` among them.

    Raises:
        InputError: the packages of the extra ``export`` are missing, or the module holds what cannot be exported.
        OSError: the file cannot be written; what lay there before still does.
    """
    onnx = _import("onnx")
    _import("onnxscript")
    with quietly(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(inputs),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=None if dynamic_axes is None else tuple(dict(axes) for axes in dynamic_axes),
                custom_translation_table=_translations() | dict(translations or {}),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise InputError(f"{type(module).__name__} cannot be exported to ONNX: {reason}") from error
    model = program.model_proto
    if preparation is not None:
        first = onnx.parser.parse_model(preparation)
        first.ir_version = model.ir_version
        outputs = [value.name for value in first.graph.output]
        merged = onnx.compose.merge_models(first, model, list(zip(outputs, input_names, strict=True)))
        del merged.opset_import[:]  # each of which it has twice, and quantisation asks for one
        merged.opset_import.extend(model.opset_import)
        merged.producer_name, merged.producer_version = model.producer_name, model.producer_version
        model = merged
    _strip(model.graph)
    _set_metadata(model, metadata)
    _save(onnx, model, path)


class OnnxModel:
    """An ONNX file of this project in an onnxruntime session on the CPU.

    Args:
        path: the file.
        task: ``"classification"`` or ``"detection"``, of which the file has to be.

    Attributes:
        path: the file.
        metadata: what it was written with, see :func:`write_onnx`.
        inputs: name and shape of each input; a size that is dynamic stands as its name.
        outputs: names of the outputs.

    Raises:
        FileNotFoundError: no such file.
        InputError: no ONNX file, not one of this project or of this task, damaged, or written by a later version.
    """

    def __init__(self, path: str | Path, task: str):
        runtime = _import("onnxruntime")
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no ONNX file {path} (looked from {os.getcwd()})")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what matters comes as an exception
        options.intra_op_num_threads = torch.get_num_threads()  # so that one setting (OMP_NUM_THREADS) rules both
        try:
            self._session = runtime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own types, which have no base but Exception
            raise InputError(f"{path} is no ONNX file, or damaged ({_reason(error)}): export it again") from error
        self.metadata = _read_metadata(self.path, self._session.get_modelmeta().custom_metadata_map, task)
        self.inputs = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self.outputs = [value.name for value in self._session.get_outputs()]

    @property
    def batch(self) -> int | None:
        """Number of images that the graph takes at once; None where it takes any."""
        size = next(iter(self.inputs.values()))[0]
        return size if isinstance(size, int) else None

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the model.

        Args:
            inputs: in the order of :attr:`inputs`, one image or more: a file of a fixed batch is run as often as is
                needed.

        Returns:
            The outputs by name, the batch their first axis.

        Raises:
            InputError: another number of inputs, or of a shape or type that the file does not take.
        """
        if len(inputs) != len(self.inputs):
            raise InputError(f"{self.path} takes {', '.join(self.inputs)}: {len(inputs)} inputs were given")
        for (name, shape), given in zip(self.inputs.items(), inputs, strict=True):
            fits = given.ndim == len(shape) and all(
                isinstance(size, str) or size == side for size, side in zip(shape[1:], given.shape[1:], strict=True)
            )
            if not fits:
                raise InputError(
                    f"{self.path}: its input {name!r} is ({', '.join(map(str, shape))}), and {given.shape} was given; "
                    "resize the images, or export with a dynamic size"
                )
        try:
            parts = [
                self._session.run(None, dict(zip(self.inputs, part, strict=True))) for part in self.batches(*inputs)
            ]
        except Exception as error:  # as above
            raise InputError(f"{self.path} cannot be run on this input: {_reason(error)}") from error
        count = len(inputs[0])
        return {name: np.concatenate(values)[:count] for name, *values in zip(self.outputs, *parts, strict=True)}

    def batches(self, *inputs: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Inputs in batches that the graph takes; the last is filled up with its last image."""
        return filled_batches(inputs, self.batch or len(inputs[0]))


def filled_batches(inputs: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Split inputs into batches of ``size``; the last is filled up with its last image."""
    for start in range(0, len(inputs[0]), size):
        part = [given[start : start + size] for given in inputs]
        missing = size - len(part[0])
        yield [np.concatenate([given, *[given[-1:]] * missing]) for given in part] if missing else part


def quantise(path: Path, target: Path, calibration: Iterable[Sequence[np.ndarray]], count: int) -> None:
    """Write a file whose convolutions and linears compute in int8; the rest stays in float.

    Args:
        path: a file that :func:`write_onnx` wrote.
        target: the file to write, of the same inputs, outputs and metadata, but for its ``"precision"``.
        calibration: inputs of the model, in its order and of its batch, from which the range of each activation is
            found; they are read one by one.
        count: how many there are, at least 1.

    Raises:
        InputError: the packages of the extra ``export`` are missing.
        OSError: the file cannot be written; what lay there before still does.
    """
    onnx, quantization = _import("onnx"), _import("onnxruntime.quantization")
    names = [value.name for value in onnx.load(path).graph.input]
    batches = (dict(zip(names, inputs, strict=True)) for inputs in calibration)

    class Reader(quantization.CalibrationDataReader):
        """Gives one input between two calls of ``set_range``: the activations of all would fill the memory."""

        def __len__(self) -> int:
            return count

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = end_index - start_index

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            return next(batches, None) if self.left >= 0 else None

    with tempfile.TemporaryDirectory() as folder, quietly(), contextlib.redirect_stdout(io.StringIO()):
        prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        _import("onnxruntime.quantization.shape_inference").quant_pre_process(path, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        _part_sums(onnx, model.graph)
        onnx.save(model, prepared)
        quantization.quantize_static(
            prepared,
            quantised,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # On signed digits entropy and percentiles gave the same accuracy, and need the activations' histograms.
            calibrate_method=quantization.CalibrationMethod.MinMax,
            # Products of two activations, of which attention is made, hold no weights to save.
            extra_options={"MatMulConstBOnly": True, "CalibStridedMinMax": 1},
        )
        model = onnx.load(quantised)
    _set_metadata(model, _metadata(onnx.load(path)) | {"precision": "int8"})
    _save(onnx, model, target)


def count_nodes(path: Path) -> int:
    """Number of nodes in the graph of an ONNX file."""
    return len(_import("onnx").load(path).graph.node)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The greatest difference of two arrays, relative to the greatest magnitude expected."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _import(package: str) -> ModuleType:
    return import_extra(package, "export", f"ONNX needs the package {package}")


def _translations() -> dict:
    """How PyTorch's operations become ONNX's, where the exporter's own way is not the best."""
    op = _import("onnxscript").opset20

    def softmax(logits, dim: int, *_):  # without annotations, which the exporter would take for ONNX's types
        """Along the last axis ONNX's own; along another spelt out, as onnxruntime transposes there and back, which
        takes seven times as long (at 1x2x6x3136 along the third: 178 against 25 microseconds)."""
        if dim in (-1, len(logits.shape) - 1):
            return op.Softmax(logits, axis=dim)
        axes = op.Constant(value_ints=[dim])
        exponentials = op.Exp(op.Sub(logits, op.ReduceMax(logits, axes, keepdims=1)))
        return op.Div(exponentials, op.ReduceSum(exponentials, axes, keepdims=1))

    return {torch.ops.aten.softmax.int: softmax, torch.ops.aten._softmax.default: softmax}


def _part_sums(onnx: ModuleType, graph: object) -> None:
    """Make two nodes of a product and a sum with anything but a vector, which the quantiser takes for a bias."""
    biases = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] not in biases:
            added, result = node.input.pop(), node.output.pop()
            node.output.append(f"{result}_product")
            graph.node.insert(place + 1, onnx.helper.make_node("Add", [node.output[0], added], [result]))


def _strip(graph: object) -> None:
    """Remove what the exporter noted for its own debugging: each node's place in the sources of this machine."""
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.metadata_props[:]


def _set_metadata(model: object, metadata: Mapping[str, Any]) -> None:
    del model.metadata_props[:]
    for key, value in {_FORMAT_KEY: FORMAT, **metadata}.items():
        model.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))


def _metadata(model: object) -> dict[str, Any]:
    return {entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key != _FORMAT_KEY}


def _save(onnx: ModuleType, model: object, path: Path) -> None:
    onnx.checker.check_model(model, full_check=True)
    write_whole(path, model.SerializeToString())


def _read_metadata(path: Path, raw: Mapping[str, str], task: str) -> dict[str, Any]:
    try:
        metadata = {key: json.loads(value) for key, value in raw.items()}
    except (ValueError, RecursionError):  # no JSON, or such as no program of ours writes
        metadata = {}
    require_metadata(path, metadata, task)
    return metadata


def require_metadata(path: Path, metadata: Mapping[str, Any], task: str) -> None:
    """Check that a file is this project's, and of a task.

    Raises:
        InputError: it is not.
    """
    if _FORMAT_KEY not in metadata or "task" not in metadata:
        raise InputError(
            f"{path} was not written by this project's export: its metadata tells neither classes nor normalisation. "
            f"Give a file of python -m {task}.export"
        )
    if metadata[_FORMAT_KEY] != FORMAT:
        raise InputError(
            f"{path} is of format {metadata[_FORMAT_KEY]}, and this version reads {FORMAT}: export it again"
        )
    if metadata["task"] != task:
        raise InputError(f"{path} is a file of {metadata['task']}.export: use it with {metadata['task']}.predict")


def _reason(error: Exception) -> str:
    """The first line of an error of onnxruntime, without its codes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rpartition(" : ")[2][:200]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Leave out what the libraries say of their own progress, and of packages that are not needed."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
