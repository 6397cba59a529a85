"""The figures of a sweep's report.

Each ``draw_…`` function writes one figure and returns None. If there is nothing to draw, it returns the reason instead.
"""

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from experiments.sweep.labels import short_names, shown_value
from experiments.sweep.plan import Plan, Range
from experiments.sweep.settings import Setting
from mobile_former.training.run.figures import COLOURS

_SHADES = colormaps["cividis"]  # readable for colour-blind readers, monotonic in lightness


def draw_history(trials: dict[int, FrozenTrial], plan: Plan, path: Path) -> str | None:
    """Plot the score of each complete or pruned trial against the trial's number, and the best score so far."""
    kinds = {
        TrialState.COMPLETE: ("complete", "o", COLOURS[0]),
        TrialState.PRUNED: ("pruned (score of its last epoch)", "x", COLOURS[9]),
    }
    points = {
        state: [(number, trial.value) for number, trial in trials.items() if trial.state == state and _has_value(trial)]
        for state in kinds
    }
    if not points[TrialState.COMPLETE]:
        return "no trial is complete"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for state, (label, marker, colour) in kinds.items():
        if points[state]:
            axis.plot(*zip(*points[state], strict=True), linestyle="", marker=marker, color=colour, label=label)
    best, steps = max if plan.direction == "maximize" else min, []
    for number, value in points[TrialState.COMPLETE]:
        steps.append((number, best(value, steps[-1][1]) if steps else value))
    steps.append((max(trials), steps[-1][1]))
    axis.plot(*zip(*steps, strict=True), drawstyle="steps-post", color=COLOURS[1], label="best so far")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("trial")
    axis.set_ylabel(_score(plan))
    axis.grid(alpha=0.3)
    axis.legend()
    return _save(figure, path)


def draw_parallel_coordinates(trials: dict[int, FrozenTrial], plan: Plan, path: Path) -> str | None:
    """Draw parallel coordinates: an axis for each parameter, and a line for each complete trial, coloured by score."""
    names = [name for name in plan.space if len({repr(trial.params[name]) for trial in trials.values()}) > 1]
    if len(trials) < 2 or not names:
        return "at least two complete trials with different parameters are needed"
    values = np.array([trial.value for trial in trials.values()])
    norm = Normalize(values.min(), values.max() if values.max() > values.min() else values.min() + 1e-9)
    figure = Figure(figsize=(2.6 + 1.9 * len(names), 4.4), layout="constrained")
    axis = figure.subplots()
    places = np.column_stack(
        [_places([trial.params[name] for trial in trials.values()], plan.space[name]) for name in names]
        + [norm(values)]
    )
    worst_first = np.argsort(values if plan.direction == "maximize" else -values)
    for row in worst_first:
        axis.plot(places[row], color=_SHADES(norm(values[row])), linewidth=1.6, alpha=0.85, marker=".")
    for position, name in enumerate(names):
        _draw_scale(axis, position, name, plan.space[name], [trial.params[name] for trial in trials.values()])
    axis.axvline(len(names), color="0.6", linewidth=0.8, zorder=0)
    axis.set_xticks(range(len(names) + 1), [*short_names(names), _score(plan)])
    for label in axis.get_xticklabels():
        label.set_parse_math(False)
    axis.set_xlim(-0.35, len(names) + 0.05)
    axis.set_ylim(-0.06, 1.06)
    axis.set_yticks([])
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    figure.colorbar(ScalarMappable(norm, _SHADES), ax=axis, label=_score(plan))
    return _save(figure, path)


def draw_importances(trials: dict[int, FrozenTrial], plan: Plan, path: Path) -> str | None:
    """Draw each parameter's share of the variance of the scores, estimated by functional ANOVA (fANOVA)."""
    names = [name for name in plan.space if len({repr(trial.params[name]) for trial in trials.values()}) > 1]
    if len(names) < 2:
        return "at least two parameters that take several values are needed"
    if len(trials) < 4:
        return f"at least 4 complete trials are needed, and there are {len(trials)}"
    if len({trial.value for trial in trials.values()}) < 2:
        return "all trials have the same score"
    study = optuna.create_study(direction=plan.direction)  # in memory, of the complete trials only
    study.add_trials(list(trials.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        importances = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    shown = dict(sorted(importances.items(), key=lambda item: item[1]))
    figure = Figure(figsize=(7, 1.2 + 0.45 * len(shown)), layout="constrained")
    axis = figure.subplots()
    axis.barh(range(len(shown)), list(shown.values()), color=COLOURS[0])
    for position, value in enumerate(shown.values()):
        axis.text(value, position, f" {value:.2f}", va="center", fontsize=9)
    axis.set_yticks(range(len(shown)), short_names(list(shown)))
    axis.set_xlim(0, 1.1 * max(shown.values()))
    axis.set_xlabel(f"share of the variance of {plan.metric} (fANOVA, {len(trials)} trials)")
    return _save(figure, path)


def draw_settings(settings: Sequence[Setting], plan: Plan, path: Path) -> str | None:
    """Draw a row for each :class:`Setting`: the score of each seed as a dot, and the mean and standard deviation."""
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(settings)), layout="constrained")
    axis = figure.subplots()
    for row, setting in enumerate(settings):
        colour = COLOURS[row % len(COLOURS)]
        axis.plot(setting.values, [row] * len(setting.values), linestyle="", marker="o", color=colour, alpha=0.4)
        spread = statistics.stdev(setting.values) if len(setting.values) > 1 else 0.0
        mean = statistics.mean(setting.values)
        axis.errorbar(mean, row, xerr=spread, marker="D", markersize=7, capsize=4, color=colour)
    names = list(settings[0].params)
    labels = [", ".join(shown_value(setting.params[name]) for name in names) for setting in settings]
    counted = [f"{label} (n={len(setting.values)})" for label, setting in zip(labels, settings, strict=True)]
    axis.set_yticks(range(len(settings)), counted)
    for label in axis.get_yticklabels():
        label.set_parse_math(False)
    axis.set_ylabel(", ".join(short_names(names)))
    axis.set_xlabel(f"{_score(plan)}: each seed, mean and standard deviation")
    axis.set_ylim(len(settings) - 0.5, -0.5)  # the first on top
    axis.grid(alpha=0.3, axis="x")
    return _save(figure, path)


def _draw_scale(axis: Axes, position: int, name: str, domain: Range | list, given: Sequence) -> None:
    axis.axvline(position, color="0.6", linewidth=0.8, zorder=0)
    if isinstance(domain, list):
        ticks = domain
    elif domain.values() is not None and len(domain.values()) <= 8:
        ticks = domain.values()
    elif domain.log:
        ticks = list(np.geomspace(domain.low, domain.high, 5))
    else:
        ticks = list(np.linspace(domain.low, domain.high, 5))
    ticks = [round(tick) if not isinstance(domain, list) and domain.is_whole else tick for tick in ticks]
    for tick, place in zip(ticks, _places(ticks, domain), strict=True):
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
        text = f"{shown_value(tick)} "
        axis.text(position, place, text, ha="right", va="center", fontsize=8, bbox=box, parse_math=False)


def _places(values: Sequence, domain: Range | list) -> np.ndarray:
    """Return the position of each value on the axis of its parameter, from 0 (first or lowest) to 1."""
    if isinstance(domain, list):
        return np.array([domain.index(value) for value in values]) / max(1, len(domain) - 1)
    scale = np.log if domain.log else np.asarray
    low, high = scale(domain.low), scale(domain.high)
    return (scale(np.array(values, dtype=float)) - low) / (high - low)


def _score(plan: Plan) -> str:
    return f"{plan.metric}, {plan.score} epoch"


def _has_value(trial: FrozenTrial) -> bool:
    return trial.value is not None and np.isfinite(trial.value)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
