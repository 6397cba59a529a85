"""Figures of scores over several seeds: every seed, the mean and the standard deviation."""

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.tables import spread
from mobile_former.training.run.figures import COLOURS


def draw_scores(scores: Mapping[str, Sequence[float]], kind: str, name: str) -> Figure:
    """Draw the scores of several settings. Each setting has a row with its scores, their mean and standard deviation.

    Args:
        scores: dictionary from the label of a setting to its scores, one for each seed.
        kind: title of the label axis, such as the names of the options in a setting.
        name: name of the score.
    """
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(scores)), layout="constrained")
    axis = figure.subplots()
    for row, values in enumerate(scores.values()):
        style = {"color": COLOURS[row % len(COLOURS)]}
        axis.plot(values, [row] * len(values), linestyle="", marker="o", alpha=0.4, **style)
        axis.errorbar(statistics.mean(values), row, xerr=spread(values), marker="D", markersize=7, capsize=4, **style)
    labels = [f"{label} (n={len(values)})" for label, values in scores.items()]
    axis.set_yticks(range(len(scores)), labels, parse_math=False)
    axis.set(ylabel=kind, xlabel=f"{name}: each seed, mean and standard deviation")
    axis.set_ylim(len(scores) - 0.5, -0.5)  # the first on top
    axis.grid(alpha=0.3, axis="x")
    return figure


def draw_against(scores: Mapping[str, Sequence[float]], quantities: Mapping[str, Sequence[float]], name: str) -> Figure:
    """Plot the scores of models against quantities such as the model size, one panel per quantity, on log scales.

    Args:
        scores: dictionary from the label of a model to its scores in [0, 1], one for each seed.
        quantities: dictionary from the name of a quantity to its value for each model, in the order of ``scores``.
        name: name of the score.
    """
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, len(quantities), sharey=True)
    for axis, (quantity, places) in zip(axes, quantities.items(), strict=True):
        for number, (place, (label, values)) in enumerate(zip(places, scores.items(), strict=True)):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "osD^vP*X"[number % 8]}
            axis.plot([place] * len(values), values, linestyle="", alpha=0.35, markersize=4, **style)
            mean = statistics.mean(values)
            bar = [[spread(values)], [min(spread(values), 1 - mean)]]  # no score is above 1
            axis.errorbar(place, mean, bar, capsize=4, markersize=8, label=label, **style)
        axis.set(xscale="log", xlabel=quantity)
        narrow = max(places) < 10 * min(places)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if narrow else (1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(name)
    legend = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(scores)))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
