"""Candidates of the benchmark: models of this project in each form (such as compiled), and other networks (peers)."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import detection
import mobile_former
from classification.baselines import create_baseline
from experiments.benchmark.earlier import create_earlier
from experiments.benchmark.onnx_graph import OnnxGraph
from mobile_former.errors import InputError, first_line, nearest
from mobile_former.training.baselines import is_baseline
from mobile_former.training.export.onnx_file import write_onnx

FORMS = ("eager", "deployed", "compiled", "onnx")
CLASSES = {"classifier": 1000, "detector": 80}  # as in ImageNet and COCO

# Takes a number of threads and images (B, 3, H, W); returns a function that runs the model on them once.
Prepare = Callable[[int, Tensor], Callable[[], object]]


@dataclass(frozen=True)
class Candidate:
    """A model to time, in one form.

    Attributes:
        model: name of the model.
        form: one of ``FORMS``.
        madds: multiply-adds of one image.
        is_peer: whether the model comes from another library or from an ONNX file.
        prepare: takes a number of threads and images, and returns a function that runs the model once on the images.
    """

    model: str
    form: str
    madds: int
    is_peer: bool
    prepare: Prepare

    @property
    def label(self) -> str:
        """A name that no other candidate has."""
        return self.model if self.model.endswith(".onnx") else f"{self.model}:{self.form}"


def create_network(name: str) -> nn.Module:
    """Build a classifier of this project, timm or transformers, or a detector of this project, with random weights.

    Args:
        name: a name in ``mobile_former.list_models()`` or ``detection.list_detectors()``, or ``timm/NAME`` or
            ``transformers/NAME``.

    Raises:
        InputError: the name is unknown, or the library cannot be imported.
    """
    if is_baseline(name):
        return create_baseline(name, CLASSES["classifier"])
    if name in detection.list_detectors():
        return detection.create_detector(name, CLASSES["detector"])
    if name not in mobile_former.list_models():
        known = [*mobile_former.list_models(), *detection.list_detectors()]
        raise InputError(f"--models: no model is named {name!r}: {nearest(name, known)}")
    return mobile_former.create_model(name, CLASSES["classifier"])


def model_candidates(
    name: str, forms: Sequence[str], image_size: tuple[int, int], device: torch.device, scratch: Path
) -> list[Candidate]:
    """Return one candidate for each form of a model of this project or of another library.

    Args:
        name: name of the model, see :func:`create_network`.
        forms: some of ``FORMS``. For a model of another library, the candidates are always ``eager``, plus ``compiled``
            if ``forms`` contains it.
        image_size: height and width in pixels.
        device: device of the model.
        scratch: folder for ONNX files.

    Raises:
        InputError: the name is unknown, or the library cannot be imported.
    """
    network = create_network(name)
    madds = mobile_former.cost(network, image_size).madds
    network = network.to(device).eval()
    if is_baseline(name):
        forms = [form for form in FORMS if form == "eager" or (form == "compiled" and form in forms)]
        deployed = network
    else:
        deployed = network if list(forms) == ["eager"] else mobile_former.deploy(network)
    prepare = {
        "eager": lambda: _module(network),
        "deployed": lambda: _module(deployed),
        "compiled": lambda: _compiled(deployed, name),
        "onnx": lambda: _exported(deployed, image_size, scratch / f"{name}.onnx"),
    }
    return [Candidate(name, form, madds, is_baseline(name), prepare[form]()) for form in forms]


def earlier_candidate(checkout: Path, name: str, madds: int, device: torch.device) -> Candidate:
    """Return a classifier of an earlier version of this project as a candidate in the form ``eager``.

    Args:
        checkout: folder with the earlier version of the repository.
        name: name of the classifier.
        madds: multiply-adds of one image; equal in both versions.
        device: device of the model.

    Raises:
        InputError: see :func:`~experiments.benchmark.earlier.create_earlier`.
    """
    network = create_earlier(checkout, name).to(device).eval()
    return Candidate(f"earlier/{name}", "eager", madds, False, _module(network))


def file_candidate(path: Path, image_size: tuple[int, int]) -> Candidate:
    """Return the network in an ONNX file as a candidate (a peer).

    Args:
        path: the file.
        image_size: height and width in pixels.

    Raises:
        InputError: the file is not an ONNX file, or its network does not take images of this size.
        FileNotFoundError: the file does not exist.
    """
    graph = OnnxGraph(path)
    return Candidate(f"{path.stem}.onnx", "onnx", graph.madds(image_size), True, graph.prepare)


def find_peers(given: Sequence[str]) -> list[str | Path]:
    """Return the peers: the names of models of other libraries, and the paths of ONNX files.

    Args:
        given: values of ``--peers``: ``timm/NAME``, ``transformers/NAME``, ``.onnx`` files, and folders of ``.onnx``
            files.

    Raises:
        InputError: a folder has no ``.onnx`` file, or two files have the same name.
        FileNotFoundError: a value is neither a model of another library nor an existing file or folder.
    """
    peers: list[str | Path] = []
    for peer in given:
        path = Path(peer)
        if is_baseline(peer) and not path.exists():
            peers.append(peer)
        elif path.is_dir():
            files = sorted(path.glob("*.onnx"))
            if not files:
                raise InputError(f"--peers {path}: the folder has no .onnx file")
            peers += files
        elif path.is_file():
            peers.append(path)
        else:
            raise FileNotFoundError(
                f"--peers: the file {peer} does not exist: give timm/NAME, transformers/NAME, or .onnx files"
            )
    peers = list(dict.fromkeys(peers))
    stems = [peer.stem for peer in peers if isinstance(peer, Path)]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise InputError(f"--peers: several files are named {twice[0]}.onnx: rename them, so that labels are unique")
    return peers


def _module(network: nn.Module) -> Prepare:
    return lambda threads, images: lambda: network(images)


def _compiled(network: nn.Module, name: str) -> Prepare:
    def prepare(threads: int, images: Tensor) -> Callable[[], object]:
        # Compiled for each setting, since kernels depend on the batch size and the number of threads.
        compiled = torch.compile(network, dynamic=False)
        try:
            with torch.inference_mode():
                compiled(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise InputError(
                f"{name} cannot be compiled on this machine ({first_line(error)}): leave compiled out of --forms"
            ) from error
        return lambda: compiled(images)

    return prepare


def _exported(network: nn.Module, image_size: tuple[int, int], path: Path) -> Prepare:
    @functools.cache
    def graph() -> OnnxGraph:
        outputs = _Outputs(network)
        images = torch.zeros(2, 3, *image_size)
        with torch.no_grad():
            names = [f"output_{number}" for number in range(len(outputs(images)))]
        write_onnx(
            outputs,
            [images],
            path,
            input_names=["images"],
            output_names=names,
            dynamic_axes=[{0: "batch"}],
            metadata={"task": "benchmark"},
        )
        return OnnxGraph(path)

    return lambda threads, images: graph().prepare(threads, images)


class _Outputs(nn.Module):
    """A network that returns its output tensors as a tuple.

    The ONNX exporter needs a tuple, but detectors return a dictionary.

    Args:
        network: a network that takes images.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return all output tensors for images ``(B, 3, H, W)``."""
        return tuple(leaf for leaf in tree_leaves(self.network(images)) if isinstance(leaf, Tensor))
