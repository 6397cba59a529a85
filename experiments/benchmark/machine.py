"""Functions that describe the machine and the package versions used for a measurement."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

from mobile_former.training.processors import available_cores


def describe_machine(device: torch.device) -> dict[str, object]:
    """Return a description of the machine.

    Args:
        device: device of the measurement.

    Returns:
        Dictionary with these keys: ``cpu`` (name), ``cores`` (number available to this process), ``system``, ``load``
        (load average of the last minute, None if the system has none) and ``gpu`` (name, None if ``device`` is a CPU).
        ``versions`` is a dictionary from a package's name to its version, None if the package is not installed.
    """
    packages = ("torch", "onnxruntime", "timm", "transformers")
    return {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or its architecture if the system reports no name.

    Args:
        cpuinfo: path of the file in which Linux describes the processor cores.
    """
    found = re.search(r"^model name\s*:\s*(.+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def in_words(machine: dict) -> str:
    """Convert the dictionary from :func:`describe_machine` to one line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    gpu = f"{machine['gpu']}; " if machine["gpu"] else ""
    return f"{gpu}{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {versions}"


def _version(package: str) -> str | None:
    # Not __version__: torch's includes the build, and importing all packages takes seconds.
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
