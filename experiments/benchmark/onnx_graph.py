"""Load ONNX files, set their batch and image size, count their multiply-adds, and run them with ONNX Runtime."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from mobile_former.errors import InputError, first_line
from mobile_former.training.extras import import_extra

if TYPE_CHECKING:
    import onnx


class OnnxGraph:
    """A network in an ONNX file whose only input is a batch of images.

    Args:
        path: path of the ONNX file.

    Raises:
        InputError: the file is not an ONNX file, the network's input is not a single tensor ``(B, 3, H, W)``, or onnx
            or onnxruntime is not installed.
        FileNotFoundError: the file does not exist.
    """

    def __init__(self, path: Path):
        onnx = import_extra("onnx", "export", f"{path} needs onnx")
        import_extra("onnxruntime", "export", f"{path} needs onnxruntime")  # fails before any timing
        from google.protobuf.message import DecodeError

        if not path.is_file():
            raise FileNotFoundError(f"the ONNX file {path} does not exist")
        try:
            self._model = onnx.load(path)
        except DecodeError as error:
            raise InputError(f"{path} is not an ONNX file: {error}") from error
        weights = {tensor.name for tensor in self._model.graph.initializer}
        inputs = [given for given in self._model.graph.input if given.name not in weights]
        if not inputs:  # protobuf reads many other files as an empty model
            raise InputError(f"{path} is not an ONNX file: it has no graph with an input")
        self.path = path
        self._input = inputs[0]
        self._shape = [size.dim_value for size in self._input.type.tensor_type.shape.dim]  # 0: dynamic
        if len(inputs) > 1 or len(self._shape) != 4 or self._shape[1] not in {0, 3}:
            names = ", ".join(f"{given.name} {_dimensions(given)}" for given in inputs)
            raise InputError(f"{path} takes {names}: give a graph that takes only images (B, 3, H, W)")

    def madds(self, image_size: tuple[int, int]) -> int:
        """Count the multiply-adds of convolutions and matrix products for one image.

        Args:
            image_size: height and width in pixels.

        Raises:
            InputError: the network takes images of another size, or the shapes of a layer cannot be inferred without
                running the network.
        """
        import onnx

        inferred = onnx.shape_inference.infer_shapes(self._sized(1, image_size), data_prop=True).graph
        shapes = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            shapes[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]
        total = 0
        for node in inferred.node:
            if node.op_type not in {"Conv", "Gemm", "MatMul"}:
                continue
            output, second = shapes.get(node.output[0], []), shapes.get(node.input[1], [])
            if node.op_type == "Conv":
                terms = math.prod(second[1:])  # weight: (out, in / groups, height, width)
            elif node.op_type == "MatMul":
                terms = second[-2] if len(second) > 1 else math.prod(second)
            else:
                transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
                terms = math.prod(second[1:] if transposed else second[:1])
            count = math.prod(output) * terms
            if not output or not second or not count:
                raise InputError(
                    f"{self.path}: the multiply-adds of {node.op_type} {node.name!r} cannot be counted, because its "
                    "shapes are unknown: export the model with fixed sizes"
                )
            total += count
        return total

    def prepare(self, threads: int, images: Tensor) -> Callable[[], object]:
        """Create an ONNX Runtime session on the CPU for a batch of images.

        Args:
            threads: number of threads for each operation.
            images: ``(B, 3, H, W)`` float32.

        Returns:
            Function that runs the network once on these images.

        Raises:
            InputError: the network does not take images of this size, or the network fails on the images.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads would spin and take the cores from the other candidates.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors only
        sized = self._sized(len(images), tuple(images.shape[2:])).SerializeToString()
        feed = {self._input.name: images.numpy(force=True)}
        try:
            session = onnxruntime.InferenceSession(sized, options, providers=["CPUExecutionProvider"])
            session.run(None, feed)
        except Exception as error:  # the only base class of ONNX Runtime's errors
            raise InputError(f"{self.path} fails on images {tuple(images.shape)}: {first_line(error)}") from error
        return lambda: session.run(None, feed)

    def _sized(self, batch: int, image_size: tuple[int, int]) -> "onnx.ModelProto":
        """Return a copy of the ONNX model with a fixed input size.

        The shapes of all other tensors are removed from the copy, because they could contradict the input size.
        """
        import onnx

        height, width = self._shape[2:]
        if (height or image_size[0], width or image_size[1]) != image_size:
            raise InputError(
                f"{self.path} takes images of {height}x{width} pixels, not {image_size[0]}x{image_size[1]}: "
                f"give --image_size {height} {width}, or leave it out of --peers"
            )
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        given = next(value for value in model.graph.input if value.name == self._input.name)
        for size, fixed in zip(given.type.tensor_type.shape.dim, (batch, 3, *image_size), strict=True):
            size.dim_value = fixed
        del model.graph.value_info[:]
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
        return model


def _dimensions(value: "onnx.ValueInfoProto") -> str:
    sizes = value.type.tensor_type.shape.dim
    return "(" + ", ".join(str(size.dim_value or size.dim_param or "?") for size in sizes) + ")"
