"""Statistics of repeated scores, and their text in Markdown tables."""

import math
import statistics
from collections.abc import Iterable, Sequence

from scipy.stats import t as student_t


def as_table(rows: Sequence[dict[str, str]]) -> str:
    """Return a Markdown table of rows, each a dictionary from a column to a cell. A row may lack columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def in_units(count: int) -> str:
    """Return a count as text in millions (M), or in billions (G) from one billion up."""
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation of the values, or 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float]) -> str:
    """Return the mean of the values as text. For several values, the text also has their standard deviation."""
    text = f"{statistics.mean(values):.4f}"
    return text if len(values) < 2 else f"{text} ± {spread(values):.4f}"


def paired_difference(values: dict[str, float], reference: dict[str, float]) -> dict | None:
    """Subtract the values of a reference, paired by key.

    Returns:
        A dictionary with the mean difference (``mean``), its 95 % confidence interval by Student's t (``interval``;
        None for a single key), and the differences by key (``values``). None if there is no common key.
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
    """Return a difference as text, with its sign and three decimals."""
    value = round(value, 3) + 0.0  # turns -0.0 into 0.0
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def short_names(names: Iterable[str]) -> list[str]:
    """Return the part after the last dot of each option, or the whole option if two options share that part."""
    names = list(names)
    last = [name.rpartition(".")[2] for name in names]
    return [short if last.count(short) == 1 else name for name, short in zip(names, last, strict=True)]


def shown(params: dict) -> dict[str, str]:
    """Return parameters with short names and their values as text: floats with three digits, "none" for None."""

    def text(value: object) -> str:
        return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    return dict(zip(short_names(params), map(text, params.values()), strict=True))


def shown_params(params: dict) -> str:
    """Return the parameters of a trial and their values in one line of text."""
    return ", ".join(f"{name} {value}" for name, value in shown(params).items())
