"""The backbone of an earlier version, beside this one in the same process."""

import importlib
import sys
from pathlib import Path

from torch import nn

from mobile_former.errors import InputError


def create_earlier(checkout: Path, name: str) -> nn.Module:
    """Build a classifier by the package ``mobile_former`` of another checkout; this version's stays as it is.

    Args:
        checkout: a folder with an earlier version of this repository, as ``git worktree add`` makes it.
        name: the model.

    Raises:
        InputError: there is no such package, or it cannot be imported.
    """
    if not (checkout / "mobile_former" / "__init__.py").is_file():
        raise InputError(f"{checkout} holds no earlier version: make one by 'git worktree add {checkout} COMMIT'")
    own = _pop_package()
    sys.path.insert(0, str(checkout.resolve()))
    try:
        package = importlib.import_module("mobile_former")
        return package.create_model(name)
    except (ImportError, ValueError) as error:  # its InputError is another than ours
        raise InputError(f"the version in {checkout} cannot be imported, or has no {name}: {error}") from error
    finally:
        sys.path.remove(str(checkout.resolve()))
        _pop_package()
        sys.modules.update(own)


def _pop_package() -> dict:
    """Take the package's modules out of those that Python knows; classes made from them live on."""
    names = [name for name in sys.modules if name.partition(".")[0] == "mobile_former"]
    return {name: sys.modules.pop(name) for name in names}
