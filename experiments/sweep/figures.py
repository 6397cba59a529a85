"""The figures of a sweep's report.

Each ``draw_…`` function returns a figure. If there is nothing to draw, it returns a string with the reason.
"""

import statistics
import warnings
from collections.abc import Sequence

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from experiments.sweep.plan import Plan, Range, short_names, shown_value
from experiments.sweep.settings import Setting
from mobile_former.training.run.figures import COLOURS

_SHADES = colormaps["cividis"]  # readable for colour-blind readers, monotonic in lightness


def draw_history(trials: dict[int, FrozenTrial], plan: Plan) -> Figure | str:
    """Plot the score of each trial against the trial's number, and the best score so far.

    Only complete trials and pruned trials are shown. A trial is pruned if its training was stopped early.

    Args:
        trials: dictionary from a trial's number to the trial.
        plan: the sweep's config.
    """
    scored = {number: trial for number, trial in trials.items() if trial.value is not None and np.isfinite(trial.value)}
    states = {
        TrialState.COMPLETE: {"label": "complete", "marker": "o", "color": COLOURS[0]},
        TrialState.PRUNED: {"label": "pruned (score of its last epoch)", "marker": "x", "color": COLOURS[9]},
    }
    numbers = {state: [number for number, trial in scored.items() if trial.state == state] for state in states}
    if not numbers[TrialState.COMPLETE]:
        return "no trial is complete"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for state, style in states.items():
        if numbers[state]:
            axis.plot(numbers[state], [scored[number].value for number in numbers[state]], linestyle="", **style)
    best = np.maximum if plan.direction == "maximize" else np.minimum
    steps = best.accumulate([scored[number].value for number in numbers[TrialState.COMPLETE]])
    places = [*numbers[TrialState.COMPLETE], max(trials)]
    axis.step(places, [*steps, steps[-1]], where="post", color=COLOURS[1], label="best so far")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="trial", ylabel=plan.score_label)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def draw_parallel_coordinates(trials: Sequence[FrozenTrial], plan: Plan) -> Figure | str:
    """Draw parallel coordinates: one axis for each parameter, and one line for each trial, coloured by score.

    Args:
        trials: the complete trials.
        plan: the sweep's config.
    """
    names = _varied(trials, plan)
    if len(trials) < 2 or not names:
        return "at least two complete trials with different parameters are needed"
    values = np.array([trial.value for trial in trials])
    norm = Normalize(values.min(), values.max() if values.max() > values.min() else values.min() + 1e-9)
    figure = Figure(figsize=(2.6 + 1.9 * len(names), 4.4), layout="constrained")
    axis = figure.subplots()
    places = [_places([trial.params[name] for trial in trials], plan.space[name]) for name in names]
    places = np.column_stack([*places, norm(values)])
    worst_first = np.argsort(values if plan.direction == "maximize" else -values)
    for row in worst_first:
        axis.plot(places[row], color=_SHADES(norm(values[row])), linewidth=1.6, alpha=0.85, marker=".")
    for position, name in enumerate(names):
        _draw_scale(axis, position, plan.space[name])
    axis.axvline(len(names), color="0.6", linewidth=0.8, zorder=0)
    axis.set_xticks(range(len(names) + 1), [*short_names(names), plan.score_label], parse_math=False)
    axis.set(xlim=(-0.35, len(names) + 0.05), ylim=(-0.06, 1.06), yticks=[])
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.colorbar(ScalarMappable(norm, _SHADES), ax=axis, label=plan.score_label)
    return figure


def draw_importances(trials: Sequence[FrozenTrial], plan: Plan) -> Figure | str:
    """Plot the importance of each hyperparameter for the score.

    The importance is the fraction of the scores' variance that the hyperparameter explains, estimated by functional
    ANOVA (fANOVA).

    Args:
        trials: the complete trials.
        plan: the sweep's config.
    """
    names = _varied(trials, plan)
    if len(names) < 2:
        return "at least two parameters that take several values are needed"
    if len(trials) < 4:
        return f"at least 4 complete trials are needed, and there are {len(trials)}"
    if len({trial.value for trial in trials}) < 2:
        return "all trials have the same score"
    study = optuna.create_study(direction=plan.direction)  # in memory, of the complete trials only
    study.add_trials(trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(names)), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(short_names(list(importances)), list(importances.values()), color=COLOURS[0])
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axis.invert_yaxis()  # the largest on top
    axis.set_xlim(0, 1.1 * max(importances.values()))
    axis.set_xlabel(f"share of the variance of {plan.metric} (fANOVA, {len(trials)} trials)")
    return figure


def draw_settings(settings: Sequence[Setting], plan: Plan) -> Figure:
    """Plot the scores of groups of trials that differ only in their seed.

    Each group is one row with its scores, their mean and their standard deviation.

    Args:
        settings: the groups of trials.
        plan: the sweep's config.
    """
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(settings)), layout="constrained")
    axis = figure.subplots()
    labels = []
    for row, setting in enumerate(settings):
        colour = COLOURS[row % len(COLOURS)]
        axis.plot(setting.values, [row] * len(setting.values), linestyle="", marker="o", color=colour, alpha=0.4)
        mean = statistics.mean(setting.values)
        axis.errorbar(mean, row, xerr=setting.deviation or 0.0, marker="D", markersize=7, capsize=4, color=colour)
        labels.append(f"{', '.join(map(shown_value, setting.params.values()))} (n={len(setting.values)})")
    axis.set_yticks(range(len(settings)), labels, parse_math=False)
    axis.set_ylabel(", ".join(short_names(list(settings[0].params))))
    axis.set_xlabel(f"{plan.score_label}: each seed, mean and standard deviation")
    axis.set_ylim(len(settings) - 0.5, -0.5)  # the first on top
    axis.grid(alpha=0.3, axis="x")
    return figure


def _varied(trials: Sequence[FrozenTrial], plan: Plan) -> list[str]:
    """Return the names of the hyperparameters whose values differ between the trials."""
    return [name for name in plan.space if len({repr(trial.params[name]) for trial in trials}) > 1]


def _draw_scale(axis: Axes, position: int, domain: Range | list) -> None:
    """Draw the vertical axis of one parameter.

    Args:
        axis: the axes of the figure.
        position: the horizontal position of the new axis.
        domain: the allowed values of the parameter. A list, or a range with at most eight values, is labelled in full.
            Any other range gets five labels.
    """
    axis.axvline(position, color="0.6", linewidth=0.8, zorder=0)
    if isinstance(domain, list):
        ticks = domain
    elif domain.values() is not None and len(domain.values()) <= 8:
        ticks = domain.values()
    else:
        ticks = (np.geomspace if domain.log else np.linspace)(domain.low, domain.high, 5)
        ticks = ticks.round().astype(int) if domain.is_whole else ticks
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for tick, place in zip(ticks, _places(ticks, domain), strict=True):
        text = f"{shown_value(tick)} "
        axis.text(position, place, text, ha="right", va="center", fontsize=8, bbox=box, parse_math=False)


def _places(values: Sequence, domain: Range | list) -> np.ndarray:
    """Return an array with the position of each value on the axis of its parameter, in [0, 1].

    Args:
        values: values of the parameter.
        domain: the allowed values of the parameter. In a list, the first is at 0 and the last at 1. In a range, the
            lowest number is at 0 and the highest at 1.
    """
    if isinstance(domain, list):
        return np.array([domain.index(value) for value in values]) / max(1, len(domain) - 1)
    scale = np.log if domain.log else np.asarray
    low, high = scale(domain.low), scale(domain.high)
    return (scale(np.array(values, dtype=float)) - low) / (high - low)
