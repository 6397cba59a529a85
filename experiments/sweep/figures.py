"""Optuna's figures of a sweep."""

import optuna
from matplotlib import pyplot, rc_context
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from experiments.sweep.plan import Plan

pyplot.switch_backend("agg")


def draw(trials: dict[int, FrozenTrial], plan: Plan) -> dict[str, Figure]:
    """Return a dictionary from file name to figure. A figure is left out if too few trials are complete for it."""
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
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
            axes.xaxis.get_major_locator().set_params(integer=True)
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
