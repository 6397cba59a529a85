"""What a measurement was made on: the machine's name and the versions of what ran."""

import importlib.metadata
import os
import platform
from pathlib import Path

import torch


def describe_machine(device: torch.device) -> dict[str, object]:
    """The machine in figures and names.

    Args:
        device: what is measured on; a GPU is named where it is one.

    Returns:
        ``cpu``, ``cores`` (that this process may use), ``system``, ``load`` (processes that wanted a core in the last
        minute, None where the system does not tell), ``gpu`` (None on a CPU), and ``versions`` by package.
    """
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    packages = ("torch", "onnxruntime", "timm", "transformers")
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": gpu,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as the system tells it; where it has none, its architecture.

    Args:
        cpuinfo: Linux's list of cores.
    """
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def in_words(machine: dict) -> str:
    """The machine in a sentence without its full stop."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    gpu = f"{machine['gpu']}; " if machine["gpu"] else ""
    return f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {versions}"


def _version(package: str) -> str | None:
    # From the package itself, torch would tell of its build as well; importing all of them would take seconds.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
