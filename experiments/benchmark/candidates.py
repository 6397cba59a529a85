"""What the benchmark times: models by name in their forms, and peers."""

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
from mobile_former.errors import InputError, nearest
from mobile_former.training.baselines import is_baseline
from mobile_former.training.export.onnx_file import write_onnx

FORMS = ("eager", "deployed", "compiled", "onnx")
CLASSES = {"classifier": 1000, "detector": 80}  # ImageNet's and COCO's


@dataclass(frozen=True)
class Candidate:
    """A model in one form, to be timed.

    Attributes:
        model: its name.
        form: one of ``FORMS``.
        madds: multiply-adds of an image.
        is_peer: whether it is of another library.
        prepare: takes a number of threads and images ``(B, 3, H, W)``; gives what runs the model on them once.
    """

    model: str
    form: str
    madds: int
    is_peer: bool
    prepare: Callable[[int, Tensor], Callable[[], object]]

    @property
    def label(self) -> str:
        """The name by which it is told from all others."""
        return self.model if self.model.endswith(".onnx") else f"{self.model}:{self.form}"


def create_network(name: str) -> nn.Module:
    """Build a classifier (of this project, timm or transformers) or a detector, with random weights.

    Args:
        name: what ``mobile_former.list_models()`` or ``detection.list_detectors()`` has, or a peer's ``timm/NAME`` or
            ``transformers/NAME``.

    Raises:
        InputError: unknown name, or a library that cannot be imported.
    """
    if is_baseline(name):
        return create_baseline(name, CLASSES["classifier"])
    if name in detection.list_detectors():
        return detection.create_detector(name, CLASSES["detector"])
    if name not in mobile_former.list_models():
        known = [*mobile_former.list_models(), *detection.list_detectors()]
        raise InputError(f"--models: there is no model {name!r}: {nearest(name, known)}")
    return mobile_former.create_model(name, CLASSES["classifier"])


def model_candidates(
    name: str, forms: Sequence[str], image_size: tuple[int, int], device: torch.device, scratch: Path
) -> list[Candidate]:
    """A model of this project or of another library in all forms that are asked for.

    Args:
        name: as :func:`create_network` takes it.
        forms: of ``FORMS``; other libraries' models are always timed eager, and compiled where that is asked for.
        image_size: height and width in pixels.
        device: where it runs.
        scratch: a folder for ONNX files.

    Raises:
        InputError: unknown name, or a library that cannot be imported.
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
    """A classifier as an earlier version of this project has it, trainable.

    Args:
        checkout: a folder with that version.
        name: the classifier.
        madds: multiply-adds of an image, which are those of this version's.
        device: where it runs.

    Raises:
        InputError: there is no such version.
    """
    network = create_earlier(checkout, name).to(device).eval()
    return Candidate(f"earlier/{name}", "eager", madds, False, _module(network))


def file_candidate(path: Path, image_size: tuple[int, int]) -> Candidate:
    """A peer in an ONNX file.

    Args:
        path: the file.
        image_size: height and width in pixels.

    Raises:
        InputError: no ONNX file, or none of a network that takes such images.
        FileNotFoundError: no such file.
    """
    graph = OnnxGraph(path)
    return Candidate(f"{path.stem}.onnx", "onnx", graph.madds(image_size), True, graph.prepare)


def find_peers(given: Sequence[str]) -> list[str | Path]:
    """Names and ONNX files of peers.

    Args:
        given: ``timm/NAME``, ``transformers/NAME``, files, and folders of ``.onnx`` files.

    Raises:
        InputError: a folder without such files, or two files of one name.
        FileNotFoundError: neither a library's name nor a file.
    """
    peers: list[str | Path] = []
    for peer in given:
        path = Path(peer)
        if is_baseline(peer) and not path.exists():
            peers.append(peer)
        elif path.is_dir():
            files = sorted(path.glob("*.onnx"))
            if not files:
                raise InputError(f"--peers {path}: there is no .onnx file in it")
            peers += files
        elif path.is_file():
            peers.append(path)
        else:
            raise FileNotFoundError(f"--peers: no file {peer}; give timm/NAME, transformers/NAME, or .onnx files")
    peers = list(dict.fromkeys(peers))
    stems = [peer.stem for peer in peers if isinstance(peer, Path)]
    if twice := [stem for stem in stems if stems.count(stem) > 1]:
        raise InputError(f"--peers: several files are named {twice[0]}.onnx, and could not be told apart: rename one")
    return peers


def _module(network: nn.Module) -> Callable[[int, Tensor], Callable[[], object]]:
    return lambda threads, images: lambda: network(images)


def _compiled(network: nn.Module, name: str) -> Callable[[int, Tensor], Callable[[], object]]:
    def prepare(threads: int, images: Tensor) -> Callable[[], object]:
        # Anew for each setting: kernels are made for a batch size and a number of threads.
        compiled = torch.compile(network, dynamic=False)
        try:
            with torch.inference_mode():
                compiled(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise InputError(
                f"{name} cannot be compiled here ({str(error).splitlines()[0]}): leave compiled out of --forms"
            ) from error
        return lambda: compiled(images)

    return prepare


def _exported(network: nn.Module, image_size: tuple[int, int], path: Path) -> Callable[[int, Tensor], Callable]:
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
    """A network whose outputs are a tuple of tensors, as exporting wants them: a detector's are a dictionary.

    Args:
        network: takes images.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """All tensors that the network gives for images ``(B, 3, H, W)``."""
        return tuple(leaf for leaf in tree_leaves(self.network(images)) if isinstance(leaf, Tensor))
