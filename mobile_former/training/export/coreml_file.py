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
    """Write a classifier as a Core ML package in half precision. The package takes an RGB image and normalises it.

    The package returns the name of the best class, and the probability of each class name. A ``.pt2`` file is also
    written beside the package. It contains a program of ``torch.export`` that takes the same image, but returns logits
    instead of probabilities. :class:`CoremlModel` runs this program.

    Args:
        module: classifier in evaluation mode that takes normalised images ``(1, 3, H, W)`` and returns logits.
        inputs: list with one example image on the CPU. Its size becomes the input size of the package.
        path: path of the package. The package is a folder, and is created in an existing folder.
        input_names: not used, because the input of the package is always called ``image``.
        output_names: list with the name of the output in the ``.pt2`` file.
        metadata: dictionary of JSON-serialisable values to store in the package. The keys ``"class_names"``,
            ``"mean"``, ``"std"`` and ``"model"`` are required.

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
    """The ``.pt2`` program beside a Core ML package, run in PyTorch. Core ML itself runs only on Apple's systems.

    The inputs are normalised images, as for the other formats. Because the program takes pixel values, the inputs are
    converted back to pixel values before the program runs.
    """

    def load(self) -> tuple[str, int]:
        """Load the program beside the package. Return the metadata as JSON, and the batch size."""
        package, self.path = self.path, self.path.with_suffix(".pt2")
        loaded = super().load()
        self.path = package
        return loaded

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run the program once on a list with one normalised image ``(1, 3, H, W)``. Return the list of outputs."""
        mean, std = (np.float32(self.metadata[name])[:, None, None] for name in ("mean", "std"))
        pixels = np.rint(255 * (inputs[0] * std + mean)).astype(np.float32)
        return super().run([pixels])


class _ImageInput(nn.Module):
    """Module that normalises pixel values for another module.

    Args:
        module: module that takes normalised images ``(1, 3, H, W)``.
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
        """Normalise an image with pixel values in 0..255, ``(1, 3, H, W)``, and return the module's output for it."""
        return self.module(image * self.scale + self.offset)
