"""Fixtures for all tests."""

import copy
import http.server
import importlib
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

import mobile_former
from tests.forked import forks

ROOT = Path(__file__).parents[1]
REFERENCE = Path(__file__).parent / "reference"
# `make baselines` installs timm into a folder, so that only the tests that need torchvision see it.
TIMM_PATHS = (ROOT / "tests" / "torchvision_operators", ROOT / ".venv" / "timm")
RUNTIMES = ROOT / ".venv" / "runtimes"  # `make runtimes` installs OpenVINO, ncnn, pnnx, coremltools and tract into it
OPENCV_4 = ROOT / ".venv" / "opencv4"  # … and OpenCV 4.14 into this folder
# Started last, these files would keep one process busy while the others have ended.
LONGEST = (
    "test_layout.py",
    "test_storm.py",
    "test_readme.py",
    "test_training.py",
    "test_interruption.py",
    "test_fuzz.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, because several processes take the files in this order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def reference_fill(name: str, shape: list[int]) -> np.ndarray:
    """Return a tensor of the reference checkpoints, drawn with its name as the seed (see reference/README.md)."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    leaf = name.rsplit(".", 1)[1]
    if leaf == "running_var":
        return np.exp(0.1 * values)
    if leaf in {"running_mean", "bias"}:
        return 0.1 * values
    if name == "tokens.weight":
        return values
    if len(shape) == 1:
        return 1 + 0.1 * values
    fan_in = np.prod(shape[1:])
    return values * np.float32((2 / fan_in) ** 0.5 if len(shape) == 4 else (1 / fan_in) ** 0.5)


def reference_state_dict(stem: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Return the description of a reference file and the checkpoint that it describes, under the authors' names."""
    description = json.loads((REFERENCE / f"{stem}.json").read_text())
    state = {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else torch.from_numpy(reference_fill(name, shape))
        for name, shape in description["state_dict"]
    }
    return description, state


def write_image_folder(root: Path, classes: tuple[str, ...], *, train: int, val: int, side: int = 64) -> Path:
    """Write JPEGs of noise around one colour per class to train/ and val/, and return the folder."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            colour = np.array([(number * 85) % 256, 128, 255 - (number * 85) % 256])
            for index in range(count):
                image = np.clip(colour + generator.normal(0, 20, (side, side, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(folder / f"{index}.jpg"), image)
    return root


def write_onnx_peer(path: Path, *, side: int) -> Path:
    """Write the ONNX file of a foreign network: one convolution and a linear layer, for one image of a fixed size."""
    from onnx import TensorProto, helper, numpy_helper, save

    generator = np.random.default_rng(0)
    shapes = {"kernel": (8, 3, 3, 3), "weight": (10, 8), "bias": (10,)}
    weights = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["map"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weight", "bias"], ["logits"], transB=1),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, side, side])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "peer", [images], [logits], weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def kept_for_backward(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Return the bytes that a forward pass saves for the backward pass, without parameters and buffers."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*inputs)
    return sum(storage.nbytes() for storage in kept.values())


def assert_same_step(model: torch.nn.Module, loss_of: Callable[[torch.nn.Module], torch.Tensor]) -> None:
    """Assert that checkpointing changes no gradients, buffers and random numbers of a training step."""
    twin = copy.deepcopy(model)
    mobile_former.checkpoint_gradients(twin)
    drawn = []
    for each in (model, twin):
        torch.manual_seed(0)
        loss_of(each).backward()
        drawn.append(torch.rand(()))
    assert drawn[0] == drawn[1]
    for (name, expected), found in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-10, msg=name)
    for (name, expected), found in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(found, expected), name


def trainer_with(*callbacks, **options) -> Trainer:
    """Return a trainer for two epochs on the CPU that writes and prints nothing."""
    options = {"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0} | options
    return Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def run_module(
    *arguments: str, cwd: Path, timeout: float = 240, paths: Sequence[Path] = ()
) -> subprocess.CompletedProcess:
    """Run ``python -m …`` as a user would, in a folder outside the repository. It also imports from ``paths``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths))), "COLUMNS": "200"}
    if not paths:
        return forks().run(arguments, cwd, environment, timeout)
    # The sitecustomize module in a path is only imported when Python starts.
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="session")
def runtimes() -> None:
    """Let tests import the runtimes that `make runtimes` installs."""
    sys.path.append(str(RUNTIMES))


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    """The library timm. If it cannot be imported, the test is skipped."""
    importlib.import_module("tests.torchvision_operators.sitecustomize")
    sys.path += map(str, TIMM_PATHS)
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        pytest.skip(f"timm cannot be imported ({error}): make baselines")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """An image folder of the classes ``blue``, ``green`` and ``red``."""
    return write_image_folder(tmp_path_factory.mktemp("data") / "colours", ("blue", "green", "red"), train=8, val=4)


@pytest.fixture(scope="session")
def two_colours(tmp_path_factory) -> Path:
    """An image folder of the classes ``blue`` and ``red``: 22 training images, five batches of four plus two images."""
    return write_image_folder(tmp_path_factory.mktemp("data") / "colours", ("blue", "red"), train=11, val=4)


@pytest.fixture
def server():
    """A web server on this machine. ``answers`` maps a path to (status, headers, body)."""
    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", answers
        running.shutdown()
