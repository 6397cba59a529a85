"""Report of a comparison: scores, cost and latency of each model."""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.interleaved import interleave
from experiments.matching import now
from experiments.runs import Training, as_table, in_units, mean_and_spread, trained_model
from experiments.sweep.settings import group
from experiments.sweep.study import Sweep
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
        draw(rows, SCORES[sweep.plan.task][0], "test" if split == "test" else "last").savefig(
            sweep.output / "comparison.png", dpi=110
        )
        print(f"\n{table}\nwritten: {sweep.output}/: comparison.md, comparison.json, comparison.png")


def compare(sweep: Sweep, split: str) -> list[dict]:
    """Collect the scores of the finished runs, and measure the cost and latency of each model.

    Returns:
        List with one dictionary for each model that has a finished run. ``scores`` maps a score to its lists ``last``
        (last epoch), ``best`` (best epoch) and, for the split "test", ``test`` (best epoch, on the test data), with one
        number for each of ``seeds``. ``seconds`` are the times of training. ``latency`` is in milliseconds.
    """
    rows, models = [], []
    for setting in group(sweep.last_attempts().values(), sweep.plan):
        trainings = [sweep.training(trial) for trial in setting.trials.values()]
        metrics = [json.loads(training.folder.metrics_json.read_text()) for training in trainings]
        scores = {}
        for name in SCORES[sweep.plan.task]:
            histories = [[row for row in own.folder.history() if f"val/{name}" in row] for own in trainings]
            scores[name] = {"last": [history[-1][f"val/{name}"] for history in histories]}
            scores[name]["best"] = [own[f"val/{name}"] for own in metrics]
            if split == "test":
                scores[name]["test"] = [test_scores(training)[f"test/{name}"] for training in trainings]
        module, image = trained_model(trainings[0])
        models.append((module, image))
        size = list(image.shape[2:])
        used = cost(module.model, tuple(size))
        row = {"label": setting.params["model"], "params": used.params, "madds": used.madds, "image_size": size}
        row |= {"seeds": [int(seed) for seed in setting.trials], "scores": scores}
        rows.append(row | {"seconds": [own["seconds"] for own in metrics]})
    return [row | {"latency": latency} for row, latency in zip(rows, latencies(models), strict=True)]


def test_scores(training: Training) -> dict[str, float]:
    """Return the test scores of a run's best checkpoint. They are computed once and kept in the folder of the run."""
    folder = training.folder.path / "test"
    if not (folder / "metrics.json").is_file():
        command = [f"{training.task}.test", "--ckpt_path", str(training.folder.best), "--output", str(folder)]
        subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "metrics.json").read_text())


@torch.inference_mode()
def latencies(models: Sequence[tuple[torch.nn.Module, torch.Tensor]]) -> list[float]:
    """Return the list of median latencies for one image in milliseconds, with the post-processing of detectors.

    The models take turns, so that other processes on the machine slow all models equally.

    Args:
        models: pairs (module, image), with an image ``(1, 3, H, W)``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(module: torch.nn.Module, image: torch.Tensor) -> None:
        outputs = module(image)
        if isinstance(outputs, dict):
            module.model.postprocess(outputs, [tuple(image.shape[2:])])

    models = [(module.to(device).eval(), image.to(device)) for module, image in models]
    calls = {str(number): partial(run, *model) for number, model in enumerate(models)}
    seconds = interleave(calls, rounds=ROUNDS, warmup=3, clock=lambda: now(device))
    return [1000 * statistics.median(own) for own in seconds.values()]


def markdown(rows: Sequence[dict]) -> str:
    """Return the comparison as a Markdown table, followed by a note on how the values were measured."""
    lines = []
    for row in rows:
        line = {"model": row["label"], "parameters": f"{row['params'] / 1e6:.2f} M"}
        line |= {"multiply-adds": in_units(row["madds"]), "ms an image": f"{row['latency']:.1f}"}
        for name, kinds in row["scores"].items():
            line |= {f"{name} ({TITLES[kind]})": mean_and_spread(values) for kind, values in kinds.items()}
        line |= {"seeds": ", ".join(map(str, row["seeds"])), "training": f"{statistics.mean(row['seconds']):.0f} s"}
        lines.append(line)
    sizes = ", ".join(sorted({"x".join(map(str, row["image_size"])) for row in rows}))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"{as_table(lines)}\nImages of {sizes} pixels. Scores: mean ± standard deviation over the seeds. Latency: "
        f"eager PyTorch {torch.__version__}, one image, median of {ROUNDS} interleaved rounds, {device}.\n"
    )


def draw(rows: Sequence[dict], name: str, kind: str) -> Figure:
    """Plot a score against multiply-adds, parameters and latency: each seed, mean and standard deviation."""
    panels = {
        "multiply-adds (millions)": [row["madds"] / 1e6 for row in rows],
        "parameters (millions)": [row["params"] / 1e6 for row in rows],
        "milliseconds an image": [row["latency"] for row in rows],
    }
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (label, places) in zip(axes, panels.items(), strict=True):
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            values = row["scores"][name][kind]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "osD^vP*X"[number % 8]}
            axis.plot([place] * len(values), values, linestyle="", alpha=0.35, markersize=4, **style)
            mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
            bar = [[spread], [min(spread, 1 - mean)]]  # no score is above 1
            axis.errorbar(place, mean, bar, capsize=4, markersize=8, label=row["label"], **style)
        axis.set(xscale="log", xlabel=label)
        narrow = max(places) < 10 * min(places)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if narrow else (1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"{name} on {TITLES[kind]}")
    legend = figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(rows))
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
