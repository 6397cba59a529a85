"""Measure the speed and memory of a training step, and trace the step.

The data is on the device beforehand, so loading is not measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import detection
from experiments.benchmark.candidates import CLASSES
from experiments.matching import now
from mobile_former.errors import InputError, first_line
from mobile_former.training.baselines import is_baseline
from mobile_former.training.optimisation import parameter_groups

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = {"bf16": torch.bfloat16, "float32": torch.float32}
TRACED_STEPS = 3
OBJECTS = 10  # per image; COCO has 7 on average


@dataclass(frozen=True)
class TrainedModel:
    """A model whose training is timed, in one form and one memory layout.

    Attributes:
        model: name of the model.
        form: "eager" or "compiled".
        layout: "contiguous" or "channels_last".
        is_peer: whether the model comes from another library.
        step: function that runs one training step.
        memory: peak GPU memory of a training step in bytes. It does not include the memory of other models and of CUDA
            itself. None on a CPU.
        saved: bytes of all tensors that the forward pass and the loss keep for the backward pass, without the weights.
    """

    model: str
    form: str
    layout: str
    is_peer: bool
    step: Callable[[], None]
    memory: int | None
    saved: int

    @property
    def label(self) -> str:
        """A unique name made of model, form and layout, such as ``mobile_former_26m:eager:contiguous``."""
        return f"{self.model}:{self.form}:{self.layout}"


def train_model(
    name: str, form: str, layout: str, create: Callable[[], nn.Module], precision: str, images: Tensor, labels: Tensor
) -> TrainedModel:
    """Build a model and its optimiser, run the first training steps, and measure the memory of a step.

    Classifiers are trained with the cross-entropy, and detectors with their own loss. The images of a detector have ten
    objects at random places.

    Args:
        name: name of the model.
        form: "eager" or "compiled".
        layout: "contiguous" or "channels_last", for weights and images.
        create: function that builds the model.
        precision: "bf16" (autocast, weights in float32) or "float32".
        images: ``(B, 3, H, W)`` on the device.
        labels: class indices ``(B,)`` on the device, for classifiers.

    Returns:
        The model with its peak memory and a function that runs one more training step.

    Raises:
        InputError: the GPU's memory is too small, or the model cannot be compiled on this machine.
    """
    device = images.device
    images = images.to(memory_format=LAYOUTS[layout])
    before = _allocated(device)
    model = create().to(device, memory_format=LAYOUTS[layout]).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=1e-4, fused=True)
    network = torch.compile(model, dynamic=False) if form == "compiled" else model
    is_detector = name.removeprefix("earlier/") in detection.list_detectors()
    objects = _random_objects(len(images), device)

    def loss() -> Tensor:
        with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32"):
            outputs = network(images)
            return model.loss(outputs, objects)["total"] if is_detector else F.cross_entropy(outputs, labels)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    try:
        for _ in range(2):  # the first step allocates the optimiser's state
            step()
        resident = _allocated(device) - before + images.nbytes
        saved = saved_bytes(loss, model)
        return TrainedModel(name, form, layout, is_baseline(name), step, _peak(device, step, resident), saved)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{name} ({form}, {layout}) does not fit into the GPU's memory with batches of {len(images)}: lower "
            "--batch_sizes, or give fewer models"
        ) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        raise InputError(
            f"{name} cannot be compiled on this machine ({first_line(error)}): leave compiled out of --forms"
        ) from error


def _random_objects(images: int, device: torch.device) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "labels": torch.randint(0, CLASSES["detector"], (OBJECTS,), generator=generator).to(device),
            "boxes": (torch.rand(OBJECTS, 4, generator=generator) * 0.4 + 0.1).to(device),
        }
        for _ in range(images)
    ]


def saved_bytes(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Return the bytes of all tensors that are kept for the backward pass of a loss.

    Tensors that share their memory are counted once. The parameters of the model are not counted.

    Args:
        loss: function that computes the loss of a training step.
        model: model whose parameters are left out.
    """
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves too, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device, step: Callable[[], None], resident: int) -> int | None:
    """Return the peak GPU memory of a model's training step in bytes, or None on a CPU.

    The peak includes ``resident``. Other memory that is in use before the step, such as that of other models, is not
    counted.

    Args:
        device: device of the step.
        step: function that runs one training step.
        resident: bytes that the model, its optimiser and its images occupy between two steps.
    """
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = _allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before + resident


def trace_step(step: Callable[[], None], device: torch.device, path: Path) -> dict[str, object]:
    """Trace a few training steps, and write the trace for chrome://tracing or Perfetto.

    Args:
        step: function that runs one training step. It must have run before.
        device: device of the step.
        path: ``.json`` or ``.json.gz`` file to write.

    Returns:
        Dictionary with ``step_ms`` (milliseconds of a step under the profiler) and ``kernels`` (list of dictionaries,
        slowest kernel first). The dictionary of a kernel has the keys ``name``, ``calls`` (calls in a step) and ``ms``
        (milliseconds in a step). On a GPU, ``step_ms`` minus the sum of all ``ms`` is idle time. On a CPU, the list has
        PyTorch operations instead of kernels. The time of an operation excludes the operations that it calls.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as trace:
        start = now(device)
        for _ in range(TRACED_STEPS):
            step()
        milliseconds = 1000 * (now(device) - start) / TRACED_STEPS
    trace.export_chrome_trace(str(path))
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    kernels = []
    for event in trace.key_averages():
        if event.device_type == kind:
            microseconds = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
            times = {"calls": event.count / TRACED_STEPS, "ms": microseconds / 1000 / TRACED_STEPS}
            kernels.append({"name": event.key} | times)
    return {"step_ms": milliseconds, "kernels": sorted(kernels, key=lambda kernel: -kernel["ms"])}
