"""Shared parts of the file formats other than ONNX: their metadata, and models with fixed input sizes."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mobile_former.errors import InputError, first_line
from mobile_former.training.export.onnx_file import FORMAT, filled_batches, require_metadata


class FixedModel:
    """Base class of exported models with fixed input sizes, loaded to run on the CPU.

    All methods and attributes have the same meaning as in :class:`mobile_former.training.export.onnx_file.OnnxModel`. A
    subclass has a method ``load()``, which loads the file and returns its metadata as JSON and its batch size, and a
    method ``run(inputs)``, which runs the model once and returns a list of output arrays.

    Args:
        path: path of the file.
        task: task that the file must have in its metadata: ``"classification"`` or ``"detection"``.

    Attributes:
        path: path of the file.
        metadata: dictionary of the metadata in the file, see :func:`metadata_text`.
        batch: number of images in each run of the model.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the runtime cannot be imported. Also raised if the file is damaged, or is not a file of this project
            and task.
    """

    def __init__(self, path: str | Path, task: str):
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"no file {path} (looked from {os.getcwd()})")
        try:
            text, self.batch = self.load()
            self.metadata: dict[str, Any] = dict(json.loads(text))
        except InputError:
            raise
        except Exception as error:  # the runtimes' exceptions have no common base
            raise InputError(f"{path} is damaged or not a file of this project's export: export it again") from error
        require_metadata(self.path, self.metadata, task)

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Run the model on one or more images, in batches of the model's fixed size.

        Args:
            inputs: one array for each input of the model. The first axis is the image.

        Returns:
            A dictionary from output name to array. The first axis is the image.
        """
        parts = [self.run(part) for part in self.batches(*inputs)]
        count, names = len(inputs[0]), self.metadata["outputs"]
        return {name: np.concatenate(values)[:count] for name, *values in zip(names, *parts, strict=True)}

    def batches(self, *inputs: np.ndarray) -> Iterator[list[np.ndarray]]:
        """Split input arrays into batches of the model's fixed size, see :func:`filled_batches`."""
        return filled_batches(inputs, self.batch)


def metadata_text(input_names: Sequence[str], output_names: Sequence[str], metadata: Mapping[str, Any]) -> str:
    """Return the metadata of a file as JSON text.

    The metadata consists of the entries of ``metadata``, the version of the metadata format, and the names of the
    inputs and outputs.
    """
    names = {"mobile_former_format": FORMAT, "inputs": list(input_names), "outputs": list(output_names)}
    return json.dumps({**names, **metadata}, ensure_ascii=False)


@contextmanager
def reported(path: Path, stage: str) -> Iterator[None]:
    """Context manager that converts any exception in the ``with`` block to an InputError with a message of one line.

    Args:
        path: path of the file that is written, for the message.
        stage: name of the step, such as ``"torch.export"``.
    """
    try:
        yield
    except Exception as error:
        raise InputError(
            f"cannot write {path}: {stage} failed with {type(error).__name__}: {first_line(error)}"
        ) from error


@contextmanager
def without_stderr() -> Iterator[None]:
    """Context manager that discards messages that native libraries write directly to the standard error."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
