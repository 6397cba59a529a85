"""``import mobile_former`` loads PyTorch and safetensors only, and has no side effects."""

import re
import subprocess
import sys

HEAVY = {
    "albumentations", "cv2", "huggingface_hub", "jsonargparse", "lightning", "matplotlib", "pytorch_lightning", "scipy",
    "sklearn", "timm", "torchmetrics", "torchvision",
}  # fmt: skip
CODE = """
import logging, os, sys, warnings
import numpy, torch

def state():
    loggers = {"": logging.root} | logging.root.manager.loggerDict
    handlers = {name: list(getattr(logger, "handlers", ())) for name, logger in loggers.items()}
    return {
        "sys.meta_path": list(sys.meta_path),
        "warnings.filters": list(warnings.filters),
        "logging handlers": {name: found for name, found in handlers.items() if found},
        "os.environ": dict(os.environ),
    }

before = state()
import mobile_former
mobile_former.mobile_former_26m()
after = state()
print([name for name in before if before[name] != after[name]])
"""


def test_import_needs_no_heavy_library_and_has_no_side_effects():
    result = subprocess.run([sys.executable, "-X", "importtime", "-c", CODE], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # Attempts to import a library that is not installed are listed too.
    imported = {name.strip().split(".")[0] for name in re.findall(r"^import time:.*\|(.*)$", result.stderr, re.M)}
    assert "mobile_former" in imported
    assert not imported & HEAVY
    assert result.stdout == "[]\n"
