"""Write the report of a sweep: tables, figures and the command that repeats the best trial."""

import csv
import io
import json
import shlex
import statistics

from optuna.trial import FrozenTrial, TrialState

from experiments.runs import as_table, in_units, mean_and_spread
from experiments.sweep.figures import draw, draw_settings
from experiments.sweep.plan import Plan, short_names, shown_value
from experiments.sweep.settings import Setting, baseline, differences, group
from experiments.sweep.study import Sweep, state_of
from mobile_former.whole_file import write_whole


def report(sweep: Sweep) -> None:
    """Write ``trials.csv``, ``sweep.json``, ``sweep.md`` and the figures, and print the table of ``sweep.md``."""
    plan, trials = sweep.plan, sweep.last_attempts()
    settings = group(trials.values(), plan)
    tables = {
        "trials.csv": _csv(plan, trials),
        "sweep.json": json.dumps(_summary(sweep, trials, settings), indent=2) + "\n",
        "sweep.md": _settings_table(plan, settings) if settings else _trials_table(sweep, trials),
    }
    for name, text in tables.items():
        write_whole(sweep.output / name, text.encode())
    figures = draw(trials, plan)
    if settings and plan.sampler == "grid":
        figures["ablation.png"] = draw_settings(settings, plan)
    for name, figure in figures.items():
        figure.savefig(sweep.output / name, dpi=110, bbox_inches="tight")
    print(f"\n{tables['sweep.md']}\nwritten: {sweep.output}/: {', '.join([*tables, *figures])}")


def _settings_table(plan: Plan, settings: list[Setting]) -> str:
    """Return a Markdown table with one line for each setting, and a note."""
    against = f"against {', '.join(map(shown_value, baseline(plan).values()))}, seed by seed"
    note, rows, compared = "Mean ± standard deviation over the seeds.", [], differences(plan, settings)
    for setting, found in zip(settings, compared, strict=True):
        row = dict(zip(short_names(setting.params), map(shown_value, setting.params.values()), strict=True))
        row[plan.score_label] = mean_and_spread(list(setting.values.values()))
        row |= {"n": str(len(setting.trials)), "seeds": ", ".join(setting.trials)}
        if setting.cost:
            row |= {"parameters": f"{setting.cost[0] / 1e6:.2f} M", "multiply-adds": in_units(setting.cost[1])}
        if found:
            row[against] = ", ".join(map(_signed, found["values"].values()))
        if found and found["interval"]:
            interval = " to ".join(map(_signed, found["interval"]))
            row[against] = f"{_signed(found['mean'])} (95 %: {interval}); {row[against]}"
        rows.append(row)
    if any(compared):
        note += " Seed by seed: the mean difference, its 95 % interval by Student's t, and each difference."
    return f"{as_table(rows)}\n{note}\n"


def _trials_table(sweep: Sweep, trials: dict[int, FrozenTrial]) -> str:
    """Return a Markdown table with one line for each trial, the best first, and a note."""
    space, rows = sweep.plan.space, []
    for number, trial in _best_first(sweep.plan, trials):
        shown = [shown_value(trial.params[name]) if name in trial.params else "" for name in space]
        row = {"trial": str(number), **dict(zip(short_names(space), shown, strict=True))}
        row[sweep.plan.score_label] = f"{trial.value:.4f}" if trial.value is not None else ""
        rows.append(row | {"epochs": str(trial.user_attrs.get("epochs", "")), "state": state_of(trial)})
    count = sum(trial.state == TrialState.COMPLETE for trial in trials.values())
    note = f"{count} of {sweep.progress()[1]} trials are complete. A pruned trial has its last epoch's score."
    return f"{as_table(rows)}\n{note}\n"


def _summary(sweep: Sweep, trials: dict[int, FrozenTrial], settings: list[Setting]) -> dict:
    """Return the content of ``sweep.json``: all trials, the best trial with its command, and the settings."""
    plan = sweep.plan
    content = {"task": plan.task, "metric": plan.metric, "score": plan.score, "direction": plan.direction}
    content["trials"] = [_record(number, trial) for number, trial in trials.items()]
    number, best = _best_first(plan, trials)[0]
    if best.state == TrialState.COMPLETE:
        words = ["python", "-m", f"{plan.task}.fit", *plan.arguments(best.params), *sweep.others]
        content["best"] = _record(number, best) | {"command": shlex.join(words)}
    content["settings"] = []
    for setting, found in zip(settings, differences(plan, settings), strict=True):
        values = setting.values
        spread = statistics.stdev(values.values()) if len(values) > 1 else None
        entry = {"params": setting.params, "mean": statistics.mean(values.values()), "standard_deviation": spread}
        entry |= {"values": values, "cost": setting.cost, "difference": found}
        content["settings"].append(entry)
    return content


def _signed(value: float) -> str:
    value = round(value, 3) + 0.0  # turns -0.0 into 0.0
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _best_first(plan: Plan, trials: dict[int, FrozenTrial]) -> list[tuple[int, FrozenTrial]]:
    """Return a list of tuples (number, trial): first the complete trials from best to worst, then all other trials."""
    sign = -1 if plan.direction == "maximize" else 1
    complete = [item for item in trials.items() if item[1].state == TrialState.COMPLETE]
    others = [item for item in trials.items() if item[1].state != TrialState.COMPLETE]
    return sorted(complete, key=lambda item: sign * item[1].value) + others


def _record(number: int, trial: FrozenTrial) -> dict:
    known = {name: value for name, value in trial.user_attrs.items() if name != "number" and value is not None}
    return {"trial": number, "state": state_of(trial), "value": trial.value, "params": trial.params, **known}


def _csv(plan: Plan, trials: dict[int, FrozenTrial]) -> str:
    columns = ["trial", "state", "value", *plan.space, "epochs", "seconds", "host", "folder", "error"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_record(number, trial) | trial.params for number, trial in trials.items())
    return file.getvalue()
