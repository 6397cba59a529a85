"""Writing Core ML packages (``.mlpackage``), which take an image and normalise it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobile_former.training.export.fixed_model import metadata_text, reported, without_stderr
from mobile_former.training.export.onnx_file import quietly
from mobile_former.training.export.program_file import ProgramModel, write_program
from mobile_former.training.extras import import_extra


def write_coreml(
    module: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """Write a classifier or a raw detector as a Core ML package, which takes an RGB image and normalises it.

    The package of a classifier computes in half precision. It returns the best class and the probabilities of all
    classes, by name. The package of a detector computes in float32, because half precision would round coordinates and
    the logits of padding. It returns the outputs of the module.

    The program before its conversion is written beside the package as a ``.pt2`` file. It has no softmax: its outputs
    are those of the module. :class:`CoremlModel` runs it.

    Args:
        module: module in evaluation mode. Its first input are normalised planes ``(1, 3, H, W)``. A classifier has no
            other input and returns logits.
        inputs: example inputs on the CPU. Their sizes become the input sizes of the program.
        path: path of the package, a folder, in an existing folder.
        input_names: name of each input. The first is not used, because the package calls its image ``image``.
        output_names: name of each output. The package of a classifier has the names that Core ML gives them.
        metadata: dictionary of JSON-serialisable values to store in the package. The keys ``"task"``, ``"model"``,
            ``"class_names"``, ``"mean"`` and ``"std"`` are required.

    Raises:
        InputError: the packages of the pip extra "coreml" are missing, or Core ML Tools cannot convert the module.
    """
    with quietly(), without_stderr():
        coremltools = import_extra("coremltools", "coreml", "a .mlpackage needs coremltools")
    names = {"input_names": ["image", *input_names[1:]], "output_names": output_names}
    module = _ImageInput(module, metadata["mean"], metadata["std"]).eval()
    write_program(module, inputs, path.with_suffix(".pt2"), **names, metadata=metadata)
    tensor = coremltools.TensorType
    if metadata["task"] == "classification":
        module = nn.Sequential(module, nn.Softmax(1)).eval()
        options = {"classifier_config": coremltools.ClassifierConfig(metadata["class_names"])}
    else:
        outputs = [tensor(name=name) for name in output_names]
        options = {"outputs": outputs, "compute_precision": coremltools.precision.FLOAT32}
    with quietly(), without_stderr(), torch.no_grad(), reported(path, "the conversion to Core ML"):
        image = coremltools.ImageType(name="image", shape=inputs[0].shape, color_layout=coremltools.colorlayout.RGB)
        others = zip(input_names[1:], inputs[1:], strict=True)
        logit = torch.ops.aten.logit.default  # Core ML Tools 9.0 know neither this operator nor aten.alias
        program = torch.export.export(module, tuple(inputs))
        program = program.run_decompositions({logit: torch.export.default_decompositions()[logit]})
        _remove_aliases(program.graph)
        package = coremltools.convert(
            program,
            inputs=[image, *(tensor(name=name, shape=each.shape, dtype=np.int32) for name, each in others)],
            minimum_deployment_target=coremltools.target.iOS16,
            skip_model_load=True,
            **options,
        )
        package.short_description = metadata["model"]
        package.user_defined_metadata["mobile_former"] = metadata_text(**names, metadata=metadata)
        package.save(str(path))


def _remove_aliases(graph: torch.fx.Graph) -> None:
    """Remove ``aten.alias``, which changes nothing, from a graph."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


class CoremlModel(ProgramModel):
    """The program of a Core ML package before its conversion, run in PyTorch: Core ML runs on Apple's systems only.

    The images are normalised, as for the other formats. The program gets the pixels that they were computed from.
    """

    def load(self) -> tuple[str, int]:
        """Load the program beside the package. Return the metadata as JSON, and the batch size."""
        package, self.path = self.path, self.path.with_suffix(".pt2")
        loaded = super().load()
        self.path = package
        return loaded

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the program once. Return its outputs."""
        mean, std = (np.float32(self.metadata[name])[:, None, None] for name in ("mean", "std"))
        pixels = np.rint(255 * (inputs[0] * std + mean)).astype(np.float32)
        return super().run([pixels, *inputs[1:]])


class _ImageInput(nn.Module):
    """Module that normalises pixel values for another module.

    Args:
        module: module that takes normalised planes.
        mean: mean of each channel, in 0..1.
        std: standard deviation of each channel, in 0..1.
    """

    def __init__(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.module = module
        mean, std = torch.tensor([list(mean), list(std)], dtype=torch.float64)[..., None, None]
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("offset", (-mean / std).float())

    def forward(self, image: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs for pixel values ``(1, 3, H, W)`` of 0..255 and the other inputs of the module."""
        return self.module(image * self.scale + self.offset, *others)
