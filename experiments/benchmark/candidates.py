"""Models to time: the models of this project in several forms (such as compiled), and other networks."""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import detection
import mobile_former
from classification.baselines import create_baseline
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
    """A model to time, in one form such as eager or compiled.

    Attributes:
        model: name of the model.
        form: "eager", "deployed", "compiled" or "onnx".
        madds: multiply-adds for one image.
        is_peer: whether the model comes from another library or from an ONNX file.
        prepare: function that takes a number of threads and images ``(B, 3, H, W)``. It returns a function without
            arguments that runs the model once on these images.
    """

    model: str
    form: str
    madds: int
    is_peer: bool
    prepare: Prepare

    @property
    def label(self) -> str:
        """The unique name of the candidate in the results, such as ``mobile_former_26m:eager``."""
        return self.model if self.model.endswith(".onnx") else f"{self.model}:{self.form}"


def create_network(name: str, image_size: tuple[int, int]) -> nn.Module:
    """Build a classifier or detector of this project, or a classifier of another library, with random weights.

    Args:
        name: name of a model in ``mobile_former.list_models()`` or ``detection.list_detectors()``. Models of other
            libraries are named ``timm/NAME`` or ``transformers/NAME``.
        image_size: height and width in pixels. Only timm's models for images of one size depend on it.

    Raises:
        InputError: the name is unknown, or the library cannot be imported.
    """
    if is_baseline(name):
        return create_baseline(name, CLASSES["classifier"], image_size=image_size)
    if name in detection.list_detectors():
        return detection.create_detector(name, CLASSES["detector"])
    if name not in mobile_former.list_models():
        known = [*mobile_former.list_models(), *detection.list_detectors()]
        raise InputError(f"--models: no model is named {name!r}: {nearest(name, known)}")
    return mobile_former.create_model(name, CLASSES["classifier"])


def model_candidates(
    name: str, forms: Sequence[str], image_size: tuple[int, int], device: torch.device, scratch: Path
) -> list[Candidate]:
    """Return a list of candidates, one for each form of a model.

    Args:
        name: name of the model, see :func:`create_network`.
        forms: one or more of "eager", "deployed", "compiled" and "onnx". For a model of another library, "eager" is
            always added and "deployed" is ignored.
        image_size: height and width in pixels.
        device: device of the model.
        scratch: folder for the exported ONNX files.

    Raises:
        InputError: the name is unknown, or the library cannot be imported.
    """
    network = create_network(name, image_size)
    madds = mobile_former.cost(network, image_size).madds
    network = network.to(device).eval()
    if is_baseline(name):
        forms = [form for form in FORMS if form == "eager" or (form in forms and form != "deployed")]
        deployed = network
    else:
        deployed = network if list(forms) == ["eager"] else mobile_former.deploy(network)
    prepare = {
        "eager": prepare_module(network),
        "deployed": prepare_module(deployed),
        "compiled": _compiled(deployed, name),
        "onnx": _exported(deployed, image_size, scratch / f"{name.replace('/', '-')}.onnx"),
    }
    return [Candidate(name, form, madds, is_baseline(name), prepare[form]) for form in forms]


def find_peers(given: Sequence[str]) -> list[str | Path]:
    """Return a list of the networks given by ``--peers``, each as a model name or as the path of an ONNX file.

    Args:
        given: values of ``--peers``. Each is ``timm/NAME``, ``transformers/NAME``, a ``.onnx`` file, or a folder of
            ``.onnx`` files.

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


def create_earlier(checkout: Path, name: str) -> nn.Module:
    """Build a classifier with the package ``mobile_former`` of another checkout. The current package stays imported.

    Args:
        checkout: folder of another version of this repository, for example from ``git worktree add``.
        name: name of the classifier.

    Raises:
        InputError: the folder has no package ``mobile_former``, the package cannot be imported, or the package has no
            model with this name.
    """
    if not (checkout / "mobile_former" / "__init__.py").is_file():
        raise InputError(f"{checkout} has no earlier version: create one with 'git worktree add {checkout} COMMIT'")
    path, finders, own = list(sys.path), list(sys.meta_path), _pop_package()
    sys.path.insert(0, str(checkout.resolve()))
    try:
        return importlib.import_module("mobile_former").create_model(name)
    except (ImportError, ValueError) as error:  # the other package's InputError is a ValueError too
        raise InputError(f"the version in {checkout} cannot be imported, or has no {name}: {error}") from error
    finally:
        # Earlier versions add an import hook for timm, which would look for their modules in the current package.
        sys.path[:], sys.meta_path[:] = path, finders
        _pop_package()
        sys.modules.update(own)


def _pop_package() -> dict:
    """Remove all modules of ``mobile_former`` from ``sys.modules``.

    Returns:
        Dictionary from the name of a removed module to the module. Existing objects of the modules stay usable.
    """
    names = [name for name in sys.modules if name.partition(".")[0] == "mobile_former"]
    return {name: sys.modules.pop(name) for name in names}


def prepare_module(network: nn.Module) -> Prepare:
    """Return a function that runs a PyTorch module as :attr:`Candidate.prepare` requires."""
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
        outputs, images = _Outputs(network), torch.zeros(2, 3, *image_size)
        with torch.no_grad():
            names = [f"output_{number}" for number in range(len(outputs(images)))]
        options = {"dynamic_axes": [{0: "batch"}], "metadata": {"task": "benchmark"}}
        write_onnx(outputs, [images], path, input_names=["images"], output_names=names, **options)
        return OnnxGraph(path)

    return lambda threads, images: graph().prepare(threads, images)


class _Outputs(nn.Module):
    """Wrapper that returns the output tensors of a network as a tuple.

    The ONNX exporter needs a tuple, but detectors return a dictionary.

    Args:
        network: a network that takes images.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return a tuple of all output tensors for images ``(B, 3, H, W)``."""
        return tuple(leaf for leaf in tree_leaves(self.network(images)) if isinstance(leaf, Tensor))
