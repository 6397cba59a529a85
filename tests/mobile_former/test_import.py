"""``import mobile_former`` loads its modules when they are used, no heavy library, and has no side effects."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import mobile_former

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


def test_pytorch_is_loaded_when_a_name_is_used():
    code = "import sys, mobile_former; print('torch' in sys.modules); mobile_former.cost; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "True"]


def test_every_public_name_is_found_and_is_the_one_that_type_checkers_see():
    tree = ast.parse(Path(mobile_former.__file__).read_text())
    (typed,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: statement.module for statement in typed.body for alias in statement.names}
    assert sorted(seen) == sorted(mobile_former.__all__)
    for name, module in seen.items():
        value = getattr(mobile_former, name)
        assert value.__module__ == module or name.startswith("mobile_former_")
        assert value is getattr(sys.modules[module], name)
    assert set(mobile_former.__all__) <= set(dir(mobile_former))
    assert not hasattr(mobile_former, "mobile_former_27m")
