"""Report a sweep from its database: tables, figures, and the command that repeats the best trial."""

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
from experiments.sweep.file_lock import locked
from experiments.sweep.labels import short_names, shown_value
from experiments.sweep.plan import trial_arguments
from experiments.sweep.settings import Difference, Setting, baseline, differences, group_by_seed, is_complete
from experiments.sweep.trial_queue import RUNNING, WAITING
from experiments.sweep.worker import Sweep
from mobile_former.whole_file import write_whole

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


def report(sweep: Sweep) -> list[str]:
    """Write ``trials.csv``, ``sweep.json``, ``sweep.md`` and the figures; print the table.

    Returns:
        One error message for each failed trial.
    """
    sweep.output.mkdir(parents=True, exist_ok=True)
    with locked(sweep.output / "report.lock", wait=True):  # several workers may finish at the same time
        return _report(sweep)


def _report(sweep: Sweep) -> list[str]:
    trials = sweep.trials()
    states = sweep.queue.states()
    settings = group_by_seed(trials, list(sweep.plan.space)) if "seed_everything" in sweep.plan.space else []
    written = ["trials.csv", "sweep.json", "sweep.md"]
    table = markdown(sweep, trials, settings)
    write_whole(sweep.output / "trials.csv", _csv(sweep, trials).encode())
    content = json.dumps(summary(sweep, trials, settings), indent=2) + "\n"
    write_whole(sweep.output / "sweep.json", content.encode())
    write_whole(sweep.output / "sweep.md", table.encode())
    print(f"\n{table}")
    complete = {number: trial for number, trial in trials.items() if is_complete(trial)}
    figures = {
        "history.png": lambda path: draw_history(trials, sweep.plan, path),
        "parallel_coordinates.png": lambda path: draw_parallel_coordinates(complete, sweep.plan, path),
        "importances.png": lambda path: draw_importances(complete, sweep.plan, path),
    }
    if settings and sweep.plan.sampler == "grid":
        figures["ablation.png"] = lambda path: draw_settings(settings, sweep.plan, path)
    for name, draw in figures.items():
        if (reason := draw(sweep.output / name)) is None:
            written.append(name)
        else:
            print(f"{name} is not drawn: {reason}")
    print(f"written: {sweep.output}/: {', '.join(written)}")
    unfinished = sum(state in (WAITING, RUNNING) for state in states.values())
    if unfinished:
        print(f"{unfinished} of {len(states)} trials are not finished: run the same command again to continue")
    return [
        f"trial {number} failed: {trial.user_attrs.get('error')} (see {trial.user_attrs.get('log')})"
        for number, trial in trials.items()
        if trial.state == TrialState.FAIL
    ]


def markdown(sweep: Sweep, trials: dict[int, FrozenTrial], settings: Sequence[Setting]) -> str:
    """Return the table of ``sweep.md``.

    The table has one line per :class:`Setting` if the seed is in the search space, else one line per trial, best trial
    first.
    """
    plan = sweep.plan
    if settings:
        names = list(settings[0].params)
        costly = any(setting.cost for setting in settings)
        lines = [[*short_names(names), f"{plan.metric}, {plan.score} epoch", "n", "seeds"]]
        if costly:
            lines[0] += ["parameters", "multiply-adds"]
        against = differences(plan, settings)
        paired = any(against)
        if paired:
            lines[0].append(f"against {', '.join(map(shown_value, baseline(plan).values()))}, seed by seed")
        for setting, found in zip(settings, against, strict=True):
            cells = [shown_value(setting.params[name]) for name in names]
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
        lines = [["trial", *short_names(names), f"{plan.metric}, {plan.score} epoch", "epochs", "state"]]
        for number, trial in _best_first(sweep, trials):
            cells = [str(number), *(shown_value(trial.params[name]) if name in trial.params else "" for name in names)]
            value = f"{trial.value:.4f}" if trial.value is not None else ""
            state = _STATES.get(trial.state, "unfinished")
            lines.append([*cells, value, str(trial.user_attrs.get("epochs", "")), state])
        count = sum(map(is_complete, trials.values()))
        note = f"{count} of {len(sweep.queue.states())} trials are complete. A pruned trial has its last epoch's score."
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + f"\n\n{note}\n"


def summary(sweep: Sweep, trials: dict[int, FrozenTrial], settings: Sequence[Setting]) -> dict:
    """Return the content of ``sweep.json``: all trials, the settings, the best trial and the command to repeat it."""
    plan = sweep.plan
    content = {
        "task": plan.task,
        "metric": plan.metric,
        "score": plan.score,
        "direction": plan.direction,
        "states": sweep.queue.states(),
        "trials": [_record(number, trial) for number, trial in trials.items()],
    }
    if complete := [(number, trial) for number, trial in _best_first(sweep, trials) if is_complete(trial)]:
        number, trial = complete[0]
        words = trial_arguments(plan, trial.params, sweep.others)
        content["best"] = _record(number, trial) | {"command": shlex.join(["python", "-m", f"{plan.task}.fit", *words])}
    if settings:
        content["settings"] = [
            {
                "params": setting.params,
                "mean": statistics.mean(setting.values),
                "standard_deviation": statistics.stdev(setting.values) if len(setting.values) > 1 else None,
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


def _best_first(sweep: Sweep, trials: dict[int, FrozenTrial]) -> list[tuple[int, FrozenTrial]]:
    sign = -1 if sweep.plan.direction == "maximize" else 1

    def rank(item: tuple[int, FrozenTrial]) -> tuple:
        number, trial = item
        return not is_complete(trial), sign * trial.value if trial.value is not None else 0, number

    return sorted(trials.items(), key=rank)


def _record(number: int, trial: FrozenTrial) -> dict:
    known = {name: value for name, value in trial.user_attrs.items() if name != "number"}
    state = _STATES.get(trial.state, "unfinished")
    return {"trial": number, "state": state, "value": trial.value, "params": trial.params, **known}


def _csv(sweep: Sweep, trials: dict[int, FrozenTrial]) -> str:
    columns = ["trial", "state", "value", *sweep.plan.space, "epochs", "seconds", "host", "folder", "error"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for number, trial in trials.items():
        record = _record(number, trial)
        writer.writerow(record | record["params"])
    return file.getvalue()
