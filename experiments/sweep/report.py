"""Write the report of a sweep: tables, figures and the command that repeats the best trial."""

import csv
import io
import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict

from optuna.trial import FrozenTrial, TrialState

from experiments.runs import in_units, mean_and_spread
from experiments.sweep.figures import draw_history, draw_importances, draw_parallel_coordinates, draw_settings
from experiments.sweep.plan import Plan, short_names, shown_value, trial_arguments
from experiments.sweep.processes import locked
from experiments.sweep.settings import Difference, Setting, baseline, differences, group_by_seed
from experiments.sweep.trial_queue import RUNNING, WAITING
from experiments.sweep.worker import Sweep
from mobile_former.whole_file import write_whole

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def report(sweep: Sweep) -> list[str]:
    """Write ``trials.csv``, ``sweep.json``, ``sweep.md`` and the figures, and print the table of ``sweep.md``.

    Returns:
        List of error messages, one for each failed trial.
    """
    sweep.output.mkdir(parents=True, exist_ok=True)
    with locked(sweep.output / "report.lock", wait=True):  # several workers may finish at the same time
        return _report(sweep)


def _report(sweep: Sweep) -> list[str]:
    plan, trials, states = sweep.plan, sweep.trials(), list(sweep.queue.states().values())
    complete = [trial for trial in trials.values() if trial.state == TrialState.COMPLETE]
    settings = group_by_seed(complete, list(plan.space)) if "seed_everything" in plan.space else []
    tables = {
        "trials.csv": _csv(plan, trials),
        "sweep.json": json.dumps(summary(sweep, trials, settings), indent=2) + "\n",
        "sweep.md": markdown(plan, trials, settings, len(states)),
    }
    for name, text in tables.items():
        write_whole(sweep.output / name, text.encode())
    print(f"\n{tables['sweep.md']}")
    figures = {
        "history.png": draw_history(trials, plan),
        "parallel_coordinates.png": draw_parallel_coordinates(complete, plan),
        "importances.png": draw_importances(complete, plan),
    }
    if settings and plan.sampler == "grid":
        figures["ablation.png"] = draw_settings(settings, plan)
    for name, figure in figures.items():
        if isinstance(figure, str):
            print(f"{name} is not drawn: {figure}")
        else:
            figure.savefig(sweep.output / name, dpi=110)
    drawn = [name for name, figure in figures.items() if not isinstance(figure, str)]
    print(f"written: {sweep.output}/: {', '.join([*tables, *drawn])}")
    if unfinished := states.count(WAITING) + states.count(RUNNING):
        print(f"{unfinished} of {len(states)} trials are not finished: run the same command again to continue")
    return [
        f"trial {number} failed: {trial.user_attrs.get('error')} (see {trial.user_attrs.get('log')})"
        for number, trial in trials.items()
        if trial.state == TrialState.FAIL
    ]


def markdown(plan: Plan, trials: dict[int, FrozenTrial], settings: Sequence[Setting], total: int) -> str:
    """Return the content of ``sweep.md``: a Markdown table and a note.

    If the seed is in the search space, the table has one line for each group of trials that differ only in their seed.
    Otherwise it has one line for each trial, with the best trial first.

    Args:
        plan: the sweep's config.
        trials: dictionary from a trial's number to the trial.
        settings: the groups of trials; empty if the seed is not in the search space.
        total: the number of trials of the sweep, including trials that were not begun.
    """
    if settings:
        costly = any(setting.cost for setting in settings)
        lines = [[*short_names(list(settings[0].params)), plan.score_label, "n", "seeds"]]
        if costly:
            lines[0] += ["parameters", "multiply-adds"]
        against = differences(plan, settings)
        if paired := any(against):
            lines[0].append(f"against {', '.join(map(shown_value, baseline(plan).values()))}, seed by seed")
        for setting, found in zip(settings, against, strict=True):
            cells = [*map(shown_value, setting.params.values())]
            cells += [mean_and_spread(setting.values), str(len(setting.values)), ", ".join(map(str, setting.seeds))]
            if costly:
                cells += [f"{setting.cost[0] / 1e6:.2f} M", in_units(setting.cost[1])] if setting.cost else ["", ""]
            if paired:
                cells.append(_shown_difference(found) if found else "")
            lines.append(cells)
        note = "Mean ± standard deviation over the seeds."
        if paired:
            note += " Seed by seed: the mean difference, its 95 % interval by Student's t, and each difference."
    else:
        names = list(plan.space)
        lines = [["trial", *short_names(names), plan.score_label, "epochs", "state"]]
        for number, trial in _best_first(plan, trials):
            cells = [str(number), *(shown_value(trial.params[name]) if name in trial.params else "" for name in names)]
            value = f"{trial.value:.4f}" if trial.value is not None else ""
            lines.append([*cells, value, str(trial.user_attrs.get("epochs", "")), _state(trial)])
        count = sum(trial.state == TrialState.COMPLETE for trial in trials.values())
        note = f"{count} of {total} trials are complete. A pruned trial has its last epoch's score."
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + f"\n\n{note}\n"


def summary(sweep: Sweep, trials: dict[int, FrozenTrial], settings: Sequence[Setting]) -> dict:
    """Return the content of ``sweep.json`` as a dictionary.

    It has all trials, the best trial with the command that repeats it, and the mean scores over the seeds.
    """
    plan = sweep.plan
    content = {
        "task": plan.task,
        "metric": plan.metric,
        "score": plan.score,
        "direction": plan.direction,
        "states": sweep.queue.states(),
        "trials": [_record(number, trial) for number, trial in trials.items()],
    }
    if complete := [pair for pair in _best_first(plan, trials) if pair[1].state == TrialState.COMPLETE]:
        number, best = complete[0]
        words = ["python", "-m", f"{plan.task}.fit", *trial_arguments(plan, best.params, sweep.others)]
        content["best"] = _record(number, best) | {"command": shlex.join(words)}
    if settings:
        content["settings"] = [
            {
                "params": setting.params,
                "mean": statistics.mean(setting.values),
                "standard_deviation": setting.deviation,
                "values": dict(zip(map(str, setting.seeds), setting.values, strict=True)),
                **({"parameters": setting.cost[0], "multiply_adds": setting.cost[1]} if setting.cost else {}),
                **({"difference": asdict(found)} if found else {}),
            }
            for setting, found in zip(settings, differences(plan, settings), strict=True)
        ]
    return content


def _shown_difference(found: Difference) -> str:
    each = ", ".join(map(_signed, found.values.values()))
    if found.interval is None:
        return each
    return f"{_signed(found.mean)} (95 %: {' to '.join(map(_signed, found.interval))}); {each}"


def _signed(value: float) -> str:
    value = round(value, 3) + 0.0  # turns -0.0 into 0.0
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _best_first(plan: Plan, trials: dict[int, FrozenTrial]) -> list[tuple[int, FrozenTrial]]:
    """Return a list of tuples (number, trial): first the complete trials from best to worst, then all other trials."""
    sign = -1 if plan.direction == "maximize" else 1

    def rank(item: tuple[int, FrozenTrial]) -> tuple:
        number, trial = item
        return trial.state != TrialState.COMPLETE, sign * trial.value if trial.value is not None else 0, number

    return sorted(trials.items(), key=rank)


def _record(number: int, trial: FrozenTrial) -> dict:
    known = {name: value for name, value in trial.user_attrs.items() if name != "number"}
    return {"trial": number, "state": _state(trial), "value": trial.value, "params": trial.params, **known}


def _state(trial: FrozenTrial) -> str:
    return _STATES.get(trial.state, "unfinished")


def _csv(plan: Plan, trials: dict[int, FrozenTrial]) -> str:
    columns = ["trial", "state", "value", *plan.space, "epochs", "seconds", "host", "folder", "error"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for number, trial in trials.items():
        writer.writerow(_record(number, trial) | trial.params)
    return file.getvalue()
