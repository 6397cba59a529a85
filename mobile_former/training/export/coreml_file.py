"""Writing classifiers as Core ML packages (``.mlpackage``), which take images and normalise them."""

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
    """Write a classifier as a Core ML package in half precision, which takes an RGB image.

    The package normalises the image. It returns the best class and the probabilities of all classes, by name.
    The program before its conversion, with logits instead of probabilities, is written beside the package as a ``.pt2``
    file. :class:`CoremlModel` runs it.

    Args:
        module: classifier in evaluation mode that takes normalised planes ``(1, 3, H, W)`` and returns logits.
        inputs: example of the input, on the CPU. Its size becomes the input size of the program.
        path: path of the package, a folder, in an existing folder.
        input_names: name of the input; not used, because the input of the package is called ``image``.
        output_names: name of the output of the program before its conversion.
        metadata: dictionary of JSON-serialisable values to store in the package. The keys
            ``"class_names"``, ``"mean"`` and ``"std"`` are required.

    Raises:
        InputError: the packages of the pip extra "coreml" are missing, or Core ML Tools cannot convert the module.
    """
    with quietly(), without_stderr():
        coremltools = import_extra("coremltools", "coreml", "a .mlpackage needs coremltools")
    names = {"input_names": ["image"], "output_names": output_names}
    module = _ImageInput(module, metadata["mean"], metadata["std"]).eval()
    write_program(module, inputs, path.with_suffix(".pt2"), **names, metadata=metadata)
    module = nn.Sequential(module, nn.Softmax(1)).eval()
    with quietly(), without_stderr(), torch.no_grad(), reported(path, "the conversion to Core ML"):
        image = coremltools.ImageType(name="image", shape=inputs[0].shape, color_layout=coremltools.colorlayout.RGB)
        program = torch.export.export(module, tuple(inputs)).run_decompositions({})
        package = coremltools.convert(
            program,
            inputs=[image],
            classifier_config=coremltools.ClassifierConfig(metadata["class_names"]),
            minimum_deployment_target=coremltools.target.iOS16,
            skip_model_load=True,
        )
        package.short_description = metadata["model"]
        package.user_defined_metadata["mobile_former"] = metadata_text(**names, metadata=metadata)
        package.save(str(path))


class CoremlModel(ProgramModel):
    """The program of a Core ML package before its conversion, run in PyTorch: Core ML runs on Apple's systems only.

    The inputs are normalised, as for the other formats. The program gets the pixels that they were computed from.
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
        return super().run([pixels])


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

    def forward(self, image: Tensor) -> Tensor:
        """Return the output for pixel values ``(1, 3, H, W)`` of 0..255."""
        return self.module(image * self.scale + self.offset)
