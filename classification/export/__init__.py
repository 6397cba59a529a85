"""``python -m classification.export``: export a classifier to a file for inference."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from classification.export.writing import write_classifier

__all__ = ["write_classifier"]


def __getattr__(name: str) -> object:
    if name not in __all__:  # imported on use, so that the command prints its help without PyTorch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from classification.export import writing

    return getattr(writing, name)
