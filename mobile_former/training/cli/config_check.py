"""Safety checks of a YAML config.

The checks limit the number of values after aliases are expanded, and allow only albumentations classes as transforms.
"""

import itertools
import math
import pkgutil
from pathlib import Path
from reprlib import repr as brief

import yaml
from albumentations.core.serialization import Serializable
from jsonargparse import Namespace

from mobile_former.errors import InputError

_MAX_VALUES = 100_000  # values in a config with its aliases expanded


def require_transforms(value: object) -> None:
    """Check that every ``class_path`` in the option ``--data.train_transforms`` is an albumentations transform.

    Without this check, a config from an untrusted source could call any function, because transforms have arguments
    that accept any callable.

    Args:
        value: value of the option. Nested lists and dictionaries are checked too.

    Raises:
        InputError: a ``class_path`` is not a transform.
    """
    if isinstance(value, list | tuple):
        for part in value:
            require_transforms(part)
    elif isinstance(value, dict | Namespace):
        for name, part in vars(value).items() if isinstance(value, Namespace) else value.items():
            if name != "class_path":
                require_transforms(part)
            elif not _is_transform(part):
                raise InputError(f"--data.train_transforms: {brief(part)} is not a transform of albumentations")


def _is_transform(class_path: object) -> bool:
    try:
        named = pkgutil.resolve_name(class_path)
    except Exception:  # the module does not exist or cannot be imported
        return False
    return isinstance(named, type) and issubclass(named, Serializable)


def require_finite(path: Path) -> None:
    """Check that a YAML config has at most 100 000 values after its aliases (``*name``) are expanded.

    This function ignores all other faults of the file.

    Raises:
        InputError: there are more values.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return
    if _count_values(root, {}) > _MAX_VALUES:
        raise InputError(f"--config {path}: its aliases (*name) expand to too many values: write them out")


def _count_values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Count the values under a YAML node, with aliases expanded. Return infinity if a node contains itself.

    ``known`` is a dictionary from the ``id`` of a node that was already counted to its count. It is extended in place.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is being counted: a node that contains itself reads this
        parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]
