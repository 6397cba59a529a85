"""Writing ONNX files from PyTorch, running them in onnxruntime, and quantising them to int8.

A file is self-contained: its metadata contains the class names and the preprocessing of the images.
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

from mobile_former.deployment.folding import whole
from mobile_former.errors import InputError, first_line
from mobile_former.training.extras import import_extra
from mobile_former.whole_file import write_whole

OPSET = 20  # the first opset with Gelu (five nodes without); runtimes for phones are often a few opsets behind
FORMAT = 1  # version of the metadata; increased when older versions of this package would misread new metadata

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
    """Write a module as one self-contained ONNX file.

    Args:
        module: module in evaluation mode. Its ``forward`` takes the inputs by position and returns a tensor or a tuple
            of tensors. The first axis of every input and output is the batch.
        inputs: example inputs on the CPU. Dynamic axes must have a size of at least 2 in these examples, because the
            exporter treats 1 as fixed. All other axes are fixed to the sizes of these examples.
        path: path of the file, in an existing folder.
        input_names: name of each input.
        output_names: name of each output.
        dynamic_axes: list with one dictionary for each input. The dictionary maps each dynamic axis to the name of its
            size or to a ``torch.export.Dim``. Axes with the same name have the same size. None: all sizes are fixed.
        translations: dictionary from each custom operator of the module to the function that builds its ONNX nodes. It
            extends the ``custom_translation_table`` of ``torch.onnx.export``. None: there are no custom operators.
        preparation: preprocessing model in ONNX's text format that runs before the module. The outputs of this model
            are the inputs of the module, in order. The inputs of this model become the inputs of the file. None: no
            preprocessing.
        metadata: dictionary of JSON-serialisable values to store in the file. The key ``"task"`` is required.
            :attr:`OnnxModel.metadata` contains these values.

    Raises:
        InputError: the packages of the pip extra "export" are missing, or the module cannot be exported.
        OSError: the file cannot be written. An existing file stays as it was.
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
            reason = first_line(error.__cause__ or error)
            raise InputError(f"{type(module).__name__} cannot be exported to ONNX: {reason}") from error
    model = program.model_proto
    if preparation is not None:
        first = onnx.parser.parse_model(preparation)
        first.ir_version = model.ir_version
        outputs = [value.name for value in first.graph.output]
        merged = onnx.compose.merge_models(first, model, list(zip(outputs, input_names, strict=True)))
        del merged.opset_import[:]  # merging lists each opset twice, and quantisation accepts one
        merged.opset_import.extend(model.opset_import)
        merged.producer_name, merged.producer_version = model.producer_name, model.producer_version
        model = merged
    _reshape_unsqueezes(onnx, model.graph)
    _fold_constants(onnx, model)
    _strip(model.graph)
    _set_metadata(model, metadata)
    _save(onnx, model, path)


class OnnxModel:
    """An ONNX file of this project, loaded by onnxruntime to run on the CPU.

    Args:
        path: path of the file.
        task: task that the file must have in its metadata: ``"classification"`` or ``"detection"``.

    Attributes:
        path: path of the file.
        metadata: dictionary of the metadata in the file, see :func:`write_onnx`.
        inputs: dictionary from input name to shape, a tuple. A dynamic size is a string in this tuple.
        outputs: list of the output names.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: onnxruntime cannot be imported. Also raised if the file is damaged, is not an ONNX file of this
            project and task, or the version of its metadata format is not supported.
    """

    def __init__(self, path: str | Path, task: str):
        runtime = _import("onnxruntime")
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no ONNX file {path} (looked from {os.getcwd()})")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as exceptions
        options.intra_op_num_threads = torch.get_num_threads()  # so that OMP_NUM_THREADS applies to both
        try:
            self._session = runtime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no other common base
            raise InputError(f"{path} is damaged or not an ONNX file ({_reason(error)}): export it again") from error
        self.metadata = _read_metadata(self.path, self._session.get_modelmeta().custom_metadata_map, task)
        self.inputs = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self.outputs = [value.name for value in self._session.get_outputs()]

    @property
    def batch(self) -> int | None:
        """Fixed batch size of the graph, or None if the graph accepts any batch size."""
        size = next(iter(self.inputs.values()))[0]
        return size if isinstance(size, int) else None

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the model.

        Args:
            inputs: arrays in the order of :attr:`inputs`, with at least one image. If the graph has a fixed batch size,
                it is run once for each batch.

        Returns:
            A dictionary from output name to array. The first axis is the image.

        Raises:
            InputError: the number of inputs, a shape or a type does not fit the file.
        """
        if len(inputs) != len(self.inputs):
            raise InputError(f"{self.path} takes {', '.join(self.inputs)}: {len(inputs)} inputs were given")
        for (name, shape), given in zip(self.inputs.items(), inputs, strict=True):
            fits = given.ndim == len(shape) and all(
                isinstance(size, str) or size == side for size, side in zip(shape[1:], given.shape[1:], strict=True)
            )
            if not fits:
                raise InputError(
                    f"{self.path}: input {name!r} has shape ({', '.join(map(str, shape))}), but {given.shape} was "
                    "given: resize the images, or export with a dynamic size"
                )
        try:
            parts = [
                self._session.run(None, dict(zip(self.inputs, part, strict=True))) for part in self.batches(*inputs)
            ]
        except Exception as error:  # see above
            raise InputError(f"{self.path} cannot be run on this input: {_reason(error)}") from error
        count = len(inputs[0])
        return {name: np.concatenate(values)[:count] for name, *values in zip(self.outputs, *parts, strict=True)}

    def batches(self, *inputs: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Split input arrays into batches of the graph's fixed size, or into one batch if the graph accepts any size.

        The last batch is padded with copies of its last image.

        Args:
            inputs: one array for each input of the graph. The first axis is the image.

        Returns:
            An iterator over batches. Each batch is a list with one array for each input.
        """
        return filled_batches(inputs, self.batch or len(inputs[0]))


def filled_batches(inputs: Sequence[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Split input arrays into batches of ``size`` images.

    The last batch is padded with copies of its last image.

    Args:
        inputs: one array for each input of the model. The first axis is the image.
        size: number of images in each batch.

    Returns:
        An iterator over batches. Each batch is a list with one array for each input.
    """
    for start in range(0, len(inputs[0]), size):
        part = [given[start : start + size] for given in inputs]
        missing = size - len(part[0])
        yield [np.concatenate([given, *[given[-1:]] * missing]) for given in part] if missing else part


def quantise(path: Path, target: Path, calibration: Iterable[Sequence[np.ndarray]], count: int) -> None:
    """Write an int8 version of an ONNX file.

    Convolutions and linear layers are quantised. All other operations stay in floating point.

    Args:
        path: file that was written by :func:`write_onnx`.
        target: path of the int8 file. Inputs, outputs and metadata are those of the file at ``path``, except that
            ``"precision"`` in the metadata is ``"int8"``.
        calibration: iterable over lists of input arrays. Each list contains the inputs of one run of the graph, with
            the graph's batch size. The range of each activation is computed from these runs. The lists are read one at
            a time.
        count: number of lists in ``calibration``, at least 1.

    Raises:
        InputError: the packages of the pip extra "export" are missing.
        OSError: the file cannot be written. An existing file stays as it was.
    """
    onnx, quantization = _import("onnx"), _import("onnxruntime.quantization")
    names = [value.name for value in onnx.load(path).graph.input]
    batches = (dict(zip(names, inputs, strict=True)) for inputs in calibration)

    class Reader(quantization.CalibrationDataReader):
        """Iterator over the calibration inputs for onnxruntime's quantiser.

        The quantiser reads a few inputs at a time, because the activations of all inputs together would not fit into
        memory. Each time, it first calls ``set_range`` with the indices of the inputs that it will read.
        """

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
        _ungroup_pointwise(onnx, model.graph)
        _remove_unused_weights(model.graph)
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
            # Entropy and percentiles gave the same accuracy on signed digits, and need histograms of the activations.
            calibrate_method=quantization.CalibrationMethod.MinMax,
            # Attention multiplies activations, which have no weights to quantise.
            extra_options={"MatMulConstBOnly": True, "CalibStridedMinMax": 1},
        )
        model = onnx.load(quantised)
    _set_metadata(model, _metadata(onnx.load(path)) | {"precision": "int8"})
    _save(onnx, model, target)


def count_nodes(path: Path) -> int:
    """Return the number of nodes in the graph of an ONNX file."""
    return len(_import("onnx").load(path).graph.node)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference between two arrays, divided by the largest magnitude in ``expected``."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _import(package: str) -> ModuleType:
    return import_extra(package, "export", f"ONNX needs the package {package}")


def _translations() -> dict:
    """Return a dictionary from PyTorch operators to functions that build equivalent ONNX nodes.

    These nodes run faster than those that the exporter builds by default.
    """
    op = _import("onnxscript").opset20

    def softmax(logits, dim: int, *_):  # unannotated: the exporter reads annotations as ONNX types
        """Translate PyTorch's softmax to ONNX.

        A softmax along the last axis becomes ONNX's ``Softmax``. A softmax along any other axis is built from primitive
        operators. For such an axis, onnxruntime's ``Softmax`` would transpose the tensor twice and take seven times as
        long (178 µs instead of 25 µs for shape (1, 2, 6, 3136) along the third axis).
        """
        if dim in (-1, len(logits.shape) - 1):
            return op.Softmax(logits, axis=dim)
        axes = op.Constant(value_ints=[dim])
        exponentials = op.Exp(op.Sub(logits, op.ReduceMax(logits, axes, keepdims=1)))
        return op.Div(exponentials, op.ReduceSum(exponentials, axes, keepdims=1))

    return {torch.ops.aten.softmax.int: softmax, torch.ops.aten._softmax.default: softmax}


def _fold_constants(onnx: ModuleType, model: object) -> None:
    """Replace all nodes of an ONNX model that depend only on constants by their results.

    PyTorch's exporter leaves such a node in the graph if its weights are large or if it has several outputs. ONNX
    Runtime computes it when it loads the file, but some other runtimes and tools refuse it. The model is changed in
    place.
    """
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    known, nodes = {tensor.name for tensor in graph.initializer} | {""}, []
    for node in graph.node:
        if known.issuperset(node.input):
            nodes.append(node)
            known.update(node.output)
    rest = [node for node in graph.node if not known.issuperset(node.output)]
    used = {name for node in rest for name in node.input} | {value.name for value in graph.output}
    results = sorted({name for node in nodes for name in node.output} & used)
    constants = onnx.helper.make_graph(
        nodes, "constants", [], [onnx.ValueInfoProto(name=name) for name in results], initializer=graph.initializer
    )
    values = ReferenceEvaluator(
        onnx.helper.make_model(constants, opset_imports=model.opset_import, functions=model.functions)
    ).run(None, {})
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    initializers += map(onnx.numpy_helper.from_array, values, results)
    for field, kept in ((graph.node, rest), (graph.initializer, initializers)):
        del field[:]
        field.extend(kept)


def _reshape_unsqueezes(onnx: ModuleType, graph: object) -> None:
    """Replace each ``Unsqueeze`` node that appends several axes by a ``Reshape`` node.

    OpenCV 4 cannot read an ``Unsqueeze`` node with several axes.
    """
    axes = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.output)}
    for node in graph.node:
        added = axes.get(node.input[1], []) if node.op_type == "Unsqueeze" else []
        rank = ranks.get(node.output[0], 0)
        kept = rank - len(added)
        if len(added) > 1 and rank and sorted(axis % rank for axis in added) == list(range(kept, rank)):
            shape, name = np.array([0] * kept + [1] * len(added)), f"{node.output[0]}_shape"  # 0: as in the input
            graph.initializer.append(onnx.numpy_helper.from_array(shape, name))
            node.op_type, node.input[1] = "Reshape", name


def _part_sums(onnx: ModuleType, graph: object) -> None:
    """Split each ``Gemm`` node whose third input is not a bias vector into a ``Gemm`` and an ``Add`` node.

    The third input is the tensor that ``Gemm`` adds. The quantiser expects that it is a bias vector.
    """
    biases = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    for place, node in reversed(list(enumerate(graph.node))):
        if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] not in biases:
            added, result = node.input.pop(), node.output.pop()
            node.output.append(f"{result}_product")
            graph.node.insert(place + 1, onnx.helper.make_node("Add", [node.output[0], added], [result]))


def _ungroup_pointwise(onnx: ModuleType, graph: object) -> None:
    """Convert grouped pointwise convolutions to ungrouped ones.

    On processors with AMX, OpenVINO 2026.4 computes grouped pointwise convolutions wrongly in int8.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        weight = weights.get(node.input[1]) if node.op_type == "Conv" else None
        groups = [attribute for attribute in node.attribute if attribute.name == "group" and attribute.i > 1]
        if groups and weight is not None and set(weight.dims[2:]) == {1}:
            rows, ones, name = weight.dims[0], weight.dims[2:], f"{weight.name}_dense"
            given = torch.from_numpy(onnx.numpy_helper.to_array(weight).reshape(rows, -1, 1, 1))
            dense = whole(given, groups[0].i).reshape(rows, -1, *ones).numpy()
            if name not in weights:
                weights[name] = onnx.numpy_helper.from_array(dense, name)
                graph.initializer.append(weights[name])
            node.input[1] = name
            groups[0].i = 1


def _remove_unused_weights(graph: object) -> None:
    """Remove the initializers that no node reads, because onnxruntime prints a warning for each of them."""
    used, graphs = {value.name for value in graph.output}, [graph]
    while graphs:
        for node in graphs.pop().node:
            used.update(node.input)
            for attribute in node.attribute:  # nodes in the body of a loop or branch read the weights of the graph, too
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _strip(graph: object) -> None:
    """Remove the exporter's debug information from an ONNX graph.

    This information contains paths of source files on this machine.
    """
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
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        metadata = {}
    require_metadata(path, metadata, task)
    return metadata


def require_metadata(path: Path, metadata: Mapping[str, Any], task: str) -> None:
    """Check the metadata of an exported file: it must belong to this project and to the given task.

    Args:
        path: path of the file, for error messages.
        metadata: metadata of the file.
        task: required task, ``"classification"`` or ``"detection"``.

    Raises:
        InputError: the file belongs to another project or task, or the version of its metadata format is not supported.
    """
    if _FORMAT_KEY not in metadata or "task" not in metadata:
        raise InputError(
            f"{path} was not written by this project's export: its metadata has no classes and no normalisation. "
            f"Give a file of python -m {task}.export"
        )
    if metadata[_FORMAT_KEY] != FORMAT:
        raise InputError(f"{path} has format {metadata[_FORMAT_KEY]}, but this version reads {FORMAT}: export it again")
    if metadata["task"] != task:
        raise InputError(f"{path} is a file of {metadata['task']}.export: use it with {metadata['task']}.predict")


def _reason(error: Exception) -> str:
    """Return the first line of an onnxruntime error message, without error codes and cut to 200 characters."""
    return first_line(error, longest=2000).rpartition(" : ")[2][:200]


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Context manager that suppresses warnings and progress messages of the exporting libraries."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
