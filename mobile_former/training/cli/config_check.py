"""What a config must not do: unfold without end, or call what is no transform."""

import itertools
import math
import pkgutil
from pathlib import Path
from reprlib import repr as brief

import yaml
from albumentations.core.serialization import Serializable
from jsonargparse import Namespace

from mobile_former.errors import InputError

_MOST_NODES = 100_000  # values in a config, aliases unfolded


def require_transforms(value: object) -> None:
    """Raise InputError for anything but a transform that a config would call, however deep in ``train_transforms``.

    What stands in a transform's own arguments the parser takes for any class or function.
    """
    if isinstance(value, list | tuple):
        for part in value:
            require_transforms(part)
    elif isinstance(value, dict | Namespace):
        for name, part in vars(value).items() if isinstance(value, Namespace) else value.items():
            if name != "class_path":
                require_transforms(part)
            elif not _is_transform(part):
                raise InputError(f"--data.train_transforms: {brief(part)} is no transform of albumentations")


def _is_transform(class_path: object) -> bool:
    try:
        named = pkgutil.resolve_name(class_path)
    except Exception:  # of a module that does not exist, or cannot be imported
        return False
    return isinstance(named, type) and issubclass(named, Serializable)


def require_readable(path: Path) -> None:
    """Raise InputError for a config that is no text, or whose aliases (``*name``) unfold without end.

    What else is wrong with it the parser tells.
    """
    if not path.is_file():
        return
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path} is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise InputError(f"--config {path} nests too deeply") from error
    except yaml.YAMLError:
        return
    if _unfolded(root, {}) > _MOST_NODES:
        raise InputError(f"--config {path}: what its aliases (*name) stand for has no end; write it out")


def _unfolded(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Number of values under a node of YAML, those of an alias counted again; infinite where one holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: so for whatever of it holds it again
        parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_unfolded(part, known) for part in parts)
    return known[id(node)]
