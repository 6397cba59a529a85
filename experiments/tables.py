"""Statistics of repeated scores, and their text in Markdown tables."""

import math
import statistics
from collections.abc import Iterable, Sequence

from scipy.stats import t as student_t


def as_table(rows: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table as text. Each row is a dictionary from column name to cell; missing cells are empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def in_units(count: int) -> str:
    """Convert a count to text: in billions (G) if it is at least one billion, otherwise in millions (M)."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of the values, or 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float]) -> str:
    """Return a text with the mean of the values and, if there are several, their standard deviation."""
    text = f"{statistics.mean(values):.4f}"
    return text if len(values) < 2 else f"{text} ± {spread(values):.4f}"


def paired_difference(values: dict[str, float], reference: dict[str, float]) -> dict | None:
    """Subtract from each score the reference's score with the same key, such as the same seed.

    Args:
        values: dictionary from key to score.
        reference: dictionary from key to score of the reference.

    Returns:
        A dictionary, or None if no key is in both arguments. ``values`` is a dictionary from each key in both arguments
        to the difference. ``mean`` is the mean of the differences, and ``interval`` is its 95 % confidence interval by
        Student's t, or None for a single key.
    """
    pairs = {key: value - reference[key] for key, value in values.items() if key in reference}
    if not pairs:
        return None
    mean, interval = statistics.mean(pairs.values()), None
    if len(pairs) > 1:
        error = statistics.stdev(pairs.values()) / math.sqrt(len(pairs))
        reach = float(student_t.ppf(0.975, len(pairs) - 1)) * error
        interval = (mean - reach, mean + reach)
    return {"mean": mean, "interval": interval, "values": pairs}


def signed(value: float) -> str:
    """Convert a difference to text with a sign and three decimals."""
    value = round(value, 3) + 0.0  # turns -0.0 into 0.0
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def short_names(names: Iterable[str]) -> list[str]:
    """Return a list of short option names: the part after the last dot, or the whole name if that is ambiguous."""
    names = list(names)
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def shown(params: dict) -> dict[str, str]:
    """Return a dictionary from the short names of parameters to their values as text.

    Floats are rounded to three significant digits. None becomes "none".
    """

    def text(value: object) -> str:
        return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    return dict(zip(short_names(params), map(text, params.values()), strict=True))


def shown_params(params: dict) -> str:
    """Return one line of text with the names and values of a trial's parameters."""
    return ", ".join(f"{name} {value}" for name, value in shown(params).items())
