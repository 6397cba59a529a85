"""Classifiers of an earlier version of this project, built next to the current version in one process."""

import importlib
import sys
from pathlib import Path

from torch import nn

from mobile_former.errors import InputError


def create_earlier(checkout: Path, name: str) -> nn.Module:
    """Build a classifier with the package ``mobile_former`` of another checkout; the current package stays imported.

    Args:
        checkout: folder of another version of this repository, for example from ``git worktree add``.
        name: name of the model.

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
    """Remove the modules of ``mobile_former`` from ``sys.modules`` and return them; their classes stay usable."""
    names = [name for name in sys.modules if name.partition(".")[0] == "mobile_former"]
    return {name: sys.modules.pop(name) for name in names}
