"""Write the report of a sweep: tables, figures and the command that repeats the best trial."""

import csv
import io
import json
import shlex
from dataclasses import asdict

from experiments.plots import draw_scores
from experiments.sweep.figures import draw
from experiments.sweep.plan import REPEATS, Plan
from experiments.sweep.settings import Setting, baseline, group
from experiments.sweep.study import Sweep, state_of
from experiments.tables import as_table, in_units, mean_and_spread, shown, signed
from mobile_former.whole_file import write_whole


def report(sweep: Sweep) -> None:
    """Write ``trials.csv``, ``sweep.json``, ``sweep.md`` and the figures, and print the table of ``sweep.md``."""
    plan, trials = sweep.plan, sweep.last_attempts()
    settings, records = group(trials, plan), []
    for number, trial in trials.items():
        known = {name: value for name, value in trial.user_attrs.items() if name != "number" and value is not None}
        record = {"trial": number, "state": state_of(trial), "value": trial.value, "params": trial.params}
        records.append(record | known)
    sign = -1 if plan.direction == "maximize" else 1
    complete = sorted((each for each in records if each["state"] == "complete"), key=lambda each: sign * each["value"])
    content = {"task": plan.task, "metric": plan.metric, "score": plan.score, "direction": plan.direction}
    content |= {"trials": records, "settings": list(map(asdict, settings))}
    if complete:
        words = ["python", "-m", f"{plan.task}.fit", *plan.arguments(complete[0]["params"]), *sweep.others]
        content["best"] = complete[0] | {"command": shlex.join(words)}
    best_first = complete + [each for each in records if each["state"] != "complete"]
    note = f"{len(complete)} of {sweep.progress()[1]} trials are complete. A pruned trial has its last epoch's score."
    table = _settings_table(plan, settings) if settings else f"{_trials_table(plan, best_first)}\n{note}\n"
    tables = {"trials.csv": _csv(plan, records), "sweep.json": json.dumps(content, indent=2) + "\n", "sweep.md": table}
    for name, text in tables.items():
        write_whole(sweep.output / name, text.encode())
    figures = draw(trials, plan)
    if settings and plan.sampler == "grid":
        scores = {", ".join(shown(each.params).values()) or "all": list(each.values.values()) for each in settings}
        figures["ablation.png"] = draw_scores(scores, ", ".join(shown(settings[0].params)), plan.score_label)
    for name, figure in figures.items():
        figure.savefig(sweep.output / name, dpi=110, bbox_inches="tight")
    print(f"\n{table}\nwritten: {sweep.output}/: {', '.join([*tables, *figures])}")


def _settings_table(plan: Plan, settings: list[Setting]) -> str:
    repeats = " and ".join(word for name, word in REPEATS.items() if name in plan.space)
    pairs = "fold by fold" if repeats == "folds" else "seed by seed"
    against = f"against {', '.join(shown(baseline(plan)).values())}, {pairs}"
    note, rows = f"Mean ± standard deviation over the {repeats}.", []
    for setting in settings:
        row = shown(setting.params) | {plan.score_label: mean_and_spread(list(setting.values.values()))}
        row |= {"n": str(len(setting.trials)), repeats: ", ".join(setting.trials)}
        if setting.cost:
            row |= {"parameters": f"{setting.cost[0] / 1e6:.2f} M", "multiply-adds": in_units(setting.cost[1])}
        if found := setting.difference:
            row[against] = ", ".join(map(signed, found["values"].values()))
            if found["interval"]:
                interval = " to ".join(map(signed, found["interval"]))
                row[against] = f"{signed(found['mean'])} (95 %: {interval}); {row[against]}"
        rows.append(row)
    if any(setting.difference for setting in settings):
        note += f" {pairs.capitalize()}: the mean difference, its 95 % interval by Student's t, and each difference."
    return f"{as_table(rows)}\n{note}\n"


def _trials_table(plan: Plan, records: list[dict]) -> str:
    rows = []
    for record in records:
        row = {"trial": str(record["trial"]), **shown({name: record["params"].get(name, "") for name in plan.space})}
        row[plan.score_label] = "" if record["value"] is None else f"{record['value']:.4f}"
        rows.append(row | {"epochs": str(record.get("epochs", "")), "state": record["state"]})
    return as_table(rows)


def _csv(plan: Plan, records: list[dict]) -> str:
    columns = ["trial", "state", "value", *plan.space, "epochs", "seconds", "host", "folder", "error"]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(record | record["params"] for record in records)
    return file.getvalue()
