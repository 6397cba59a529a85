"""The figures of a sweep's report: Optuna's, and one of settings with several seeds, which Optuna does not have."""

import statistics
from collections.abc import Sequence

import optuna
from matplotlib import pyplot, rc_context
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from experiments.sweep.plan import Plan
from experiments.sweep.settings import Setting
from experiments.tables import shown, spread
from mobile_former.training.run.figures import COLOURS

pyplot.switch_backend("agg")


def draw(trials: dict[int, FrozenTrial], plan: Plan) -> dict[str, Figure]:
    """Return a dictionary from a file name to its figure, without the figures for which there are too few trials.

    Args:
        trials: dictionary from a trial's number to its last attempt.
        plan: the sweep's config.
    """
    study, figures = optuna.create_study(direction=plan.direction), {}  # in memory, of the last attempts only
    for number in range(max(trials) + 1):
        ended = number in trials and trials[number].state.is_finished()
        study.add_trial(trials[number] if ended else optuna.trial.create_trial(state=TrialState.FAIL))
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    varied = [name for name in plan.space if len({repr(trial.params[name]) for trial in complete}) > 1]
    with rc_context():  # Optuna changes the style
        if complete:
            axes = plots.plot_optimization_history(study, target_name=plan.score_label)
            pruned = {trial.number: trial.value for trial in study.get_trials(states=(TrialState.PRUNED,))}
            axes.plot(list(pruned), list(pruned.values()), "x", color="0.4", label="pruned, last epoch")
            axes.legend()
            figures["history.png"] = axes.figure
        if len(complete) > 3 and len(varied) > 1 and len({trial.value for trial in complete}) > 1:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            axes = plots.plot_param_importances(study, evaluator, varied, target_name=plan.metric)
            axes.set_xlabel(f"share of the variance of {plan.metric} (fANOVA, {len(complete)} trials)")
            figures["importances.png"] = axes.figure
    if len(complete) > 1 and varied:
        axes = plots.plot_parallel_coordinate(study, varied, target_name=plan.score_label)
        axes.figure.set_size_inches(4 + 1.9 * len(varied), 5)
        axes.collections[0].set(cmap="cividis", alpha=0.85)
        for label in [label for own in axes.figure.axes for label in own.get_yticklabels(which="both")]:
            label.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8})
        figures["parallel_coordinates.png"] = axes.figure
    pyplot.close("all")
    return figures


def draw_settings(settings: Sequence[Setting], plan: Plan) -> Figure:
    """Draw one row for each setting: its scores, their mean and their standard deviation."""
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(settings)), layout="constrained")
    axis, labels = figure.subplots(), []
    for row, setting in enumerate(settings):
        values, colour = list(setting.values.values()), COLOURS[row % len(COLOURS)]
        axis.plot(values, [row] * len(values), linestyle="", marker="o", color=colour, alpha=0.4)
        style = {"marker": "D", "markersize": 7, "capsize": 4, "color": colour}
        axis.errorbar(statistics.mean(values), row, xerr=spread(values), **style)
        labels.append(f"{', '.join(shown(setting.params).values())} (n={len(values)})")
    axis.set_yticks(range(len(settings)), labels, parse_math=False)
    axis.set_ylabel(", ".join(shown(settings[0].params)))
    axis.set_xlabel(f"{plan.score_label}: each seed, mean and standard deviation")
    axis.set_ylim(len(settings) - 0.5, -0.5)  # the first on top
    axis.grid(alpha=0.3, axis="x")
    return figure
