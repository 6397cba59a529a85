"""Parameters of trials as text, for log lines, tables and figures."""

from collections.abc import Sequence


def short_names(names: Sequence[str]) -> list[str]:
    """Return the part of each option's name after the last dot, or the full name if two options share that part."""
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def shown_params(params: dict) -> str:
    """Return parameters and their values in one line."""
    names = short_names(list(params))
    return ", ".join(f"{name} {shown_value(value)}" for name, value in zip(names, params.values(), strict=True))


def shown_value(value: object) -> str:
    """Return a parameter's value as text."""
    if value is None:
        return "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
