"""Report of a comparison: scores, cost and latency of each model."""

import json
import statistics
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.interleaved import latencies
from experiments.sweep.settings import group
from experiments.sweep.study import Sweep
from experiments.tables import as_table, in_units, mean_and_spread, spread
from mobile_former.multiply_adds import cost
from mobile_former.training.run.figures import COLOURS
from mobile_former.whole_file import write_whole

ROUNDS = 30  # timed rounds; each model predicts one image per round
SCORES = {"classification": ("top1",), "detection": ("AP", "AP50")}  # the first is plotted
TITLES = {"last": "val, last epoch", "best": "val, best epoch", "test": "test, best epoch on val"}


def report(sweep: Sweep, split: str) -> None:
    """Write the comparison as Markdown, JSON and a figure to the output folder, and print the Markdown table."""
    if rows := compare(sweep, split):
        table = markdown(rows)
        write_whole(sweep.output / "comparison.md", table.encode())
        write_whole(sweep.output / "comparison.json", (json.dumps(rows, indent=2) + "\n").encode())
        figure = draw(rows, SCORES[sweep.plan.task][0], "test" if split == "test" else "last")
        figure.savefig(sweep.output / "comparison.png", dpi=110)
        print(f"\n{table}\nwritten: {sweep.output}/: comparison.md, comparison.json, comparison.png")


def compare(sweep: Sweep, split: str) -> list[dict]:
    """Collect the scores of the finished runs, and measure the cost and latency of each model.

    Returns:
        List with one dictionary for each model that has a finished run. ``scores`` maps a score to its lists ``last``
        (last epoch), ``best`` (best epoch) and, for the split "test", ``test`` (best epoch, on the test data), with one
        number for each of ``seeds``. ``seconds`` are the times of training. ``latency`` is in milliseconds.
    """
    rows, models = [], []
    trials = sweep.last_attempts()
    for setting in group(trials, sweep.plan):
        runs = [sweep.training(trials[number]) for number in setting.trials.values()]
        metrics = [json.loads(run.folder.metrics_json.read_text()) for run in runs]
        models.append(runs[0].model())
        size = tuple(models[-1][1].shape[2:])
        used, scores = cost(models[-1][0].model, size), {}
        for name in SCORES[sweep.plan.task]:
            scores[name] = {"last": [list(run.values(f"val/{name}").values())[-1] for run in runs]}
            scores[name]["best"] = [own[f"val/{name}"] for own in metrics]
            if split == "test":
                scores[name]["test"] = [run.test_scores()[f"test/{name}"] for run in runs]
        row = {"label": setting.params["model"], "params": used.params, "madds": used.madds, "image_size": size}
        row |= {"seeds": list(map(int, setting.trials)), "seconds": [own["seconds"] for own in metrics]}
        rows.append(row | {"scores": scores})
    return [row | {"latency": latency} for row, latency in zip(rows, latencies(models, ROUNDS), strict=True)]


def markdown(rows: Sequence[dict]) -> str:
    """Return the comparison as a Markdown table, followed by a note on how the values were measured."""
    lines = []
    for row in rows:
        line = {"model": row["label"], "parameters": f"{row['params'] / 1e6:.2f} M"}
        line |= {"multiply-adds": in_units(row["madds"]), "ms an image": f"{row['latency']:.1f}"}
        for name, kinds in row["scores"].items():
            line |= {f"{name} ({TITLES[kind]})": mean_and_spread(values) for kind, values in kinds.items()}
        seeds, seconds = ", ".join(map(str, row["seeds"])), statistics.mean(row["seconds"])
        lines.append(line | {"seeds": seeds, "training": f"{seconds:.0f} s"})
    sizes = ", ".join(sorted({"x".join(map(str, row["image_size"])) for row in rows}))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"{as_table(lines)}\nImages of {sizes} pixels. Scores: mean ± standard deviation over the seeds. Latency: "
        f"eager PyTorch {torch.__version__}, one image, median of {ROUNDS} interleaved rounds, {device}.\n"
    )


def draw(rows: Sequence[dict], name: str, kind: str) -> Figure:
    """Plot a score against multiply-adds, parameters and latency: each seed, mean and standard deviation."""
    panels = {"multiply-adds (millions)": ("madds", 1e6), "parameters (millions)": ("params", 1e6)}
    panels["milliseconds an image"] = ("latency", 1)
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (label, (key, unit)) in zip(axes, panels.items(), strict=True):
        places = [row[key] / unit for row in rows]
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            values = row["scores"][name][kind]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "osD^vP*X"[number % 8]}
            axis.plot([place] * len(values), values, linestyle="", alpha=0.35, markersize=4, **style)
            mean = statistics.mean(values)
            bar = [[spread(values)], [min(spread(values), 1 - mean)]]  # no score is above 1
            axis.errorbar(place, mean, bar, capsize=4, markersize=8, label=row["label"], **style)
        axis.set(xscale="log", xlabel=label)
        narrow = max(places) < 10 * min(places)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if narrow else (1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{name} on {TITLES[kind]}")
    legend = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(rows)))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
