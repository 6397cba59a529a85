"""Report of a comparison: scores, cost and latency of each model."""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.compare.plan import Plan, Run
from experiments.interleaved import interleave
from experiments.matching import now
from experiments.runs import MODULES, in_units, mean_and_spread, validation_image
from mobile_former.multiply_adds import cost
from mobile_former.training.run.checkpoint import load_checkpoint
from mobile_former.training.run.figures import COLOURS

ROUNDS = 30  # timed rounds; each model predicts one image per round
SCORES = {"classification": ("top1",), "detection": ("AP", "AP50")}  # the first is plotted


@dataclass
class Row:
    """Results of one model over all seeds.

    Attributes:
        label: label of the model.
        params: number of parameters.
        madds: multiply-adds for one image of size ``image_size``.
        image_size: height and width in pixels of a validation image.
        latency: median latency for one image in milliseconds.
        seeds: seeds whose runs are finished.
        scores: dictionary from the name of a score to a dictionary of lists: ``last`` (last epoch), ``best`` (best
            epoch) and, if requested, ``test`` (best epoch, on the test data). Each list has one number per seed.
        seconds: list of training times in seconds, one per seed.
    """

    label: str
    params: int
    madds: int
    image_size: tuple[int, int]
    latency: float
    seeds: list[int]
    scores: dict[str, dict[str, list[float]]]
    seconds: list[float]


def compare(plan: Plan, runs: Sequence[Run]) -> list[Row]:
    """Collect the scores of the finished runs, and measure the cost and latency of each model.

    Args:
        plan: config of the comparison.
        runs: the finished runs.

    Returns:
        List with one row for each model that has a finished run.
    """
    rows, timed = [], []
    for label in plan.models:
        own = [run for run in runs if run.label == label]
        if not own:
            continue
        module, data_options = load_checkpoint(own[0].folder.best, MODULES[plan.task], plan.task)
        image = validation_image(plan.task, data_options)
        scores = {name: {"last": [], "best": []} for name in SCORES[plan.task]}
        seconds = []
        for run in own:
            metrics = json.loads(run.folder.metrics_json.read_text())
            seconds.append(metrics["seconds"])
            tested = test(run, plan.task) if plan.split == "test" else {}
            for name, values in scores.items():
                values["last"].append([row for row in run.folder.history() if f"val/{name}" in row][-1][f"val/{name}"])
                values["best"].append(metrics[f"val/{name}"])
                if tested:
                    values.setdefault("test", []).append(tested[f"test/{name}"])
        size = tuple(image.shape[2:])
        used = cost(module.model, size)
        rows.append(Row(label, used.params, used.madds, size, 0.0, [run.seed for run in own], scores, seconds))
        timed.append((module, image))
    for row, latency in zip(rows, latencies(timed), strict=True):
        row.latency = latency
    return rows


def test(run: Run, task: str) -> dict[str, float]:
    """Return a dictionary with the test scores of the best checkpoint of a run.

    The scores are computed once and kept in the folder of the run.
    """
    folder = run.folder.path / "test"
    if not (folder / "metrics.json").is_file():
        command = [f"{task}.test", "--ckpt_path", str(run.folder.best), "--output", str(folder)]
        subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "metrics.json").read_text())


@torch.inference_mode()
def latencies(models: Sequence[tuple[torch.nn.Module, torch.Tensor]]) -> list[float]:
    """Return the list of median latencies for one image in milliseconds, one per model.

    The models take turns, so that other processes on the machine slow all models equally. The time includes the
    post-processing of detectors.

    Args:
        models: pairs (module, image), with an image ``(1, 3, H, W)``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [(module.to(device).eval(), image.to(device)) for module, image in models]

    def run(module: torch.nn.Module, image: torch.Tensor) -> None:
        outputs = module(image)
        if isinstance(outputs, dict):
            module.model.postprocess(outputs, [tuple(image.shape[2:])])

    calls = {str(number): partial(run, *model) for number, model in enumerate(models)}
    seconds = interleave(calls, rounds=ROUNDS, warmup=3, clock=lambda: now(device))
    return [1000 * statistics.median(own) for own in seconds.values()]


def report(rows: Sequence[Row], plan: Plan, output: Path) -> None:
    """Write the comparison as Markdown, JSON and a figure to the output folder, and print the Markdown table."""
    table = markdown(rows, plan)
    (output / "comparison.md").write_text(table)
    (output / "comparison.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    draw(rows, plan, output / "comparison.png")
    print(f"\n{table}\nwritten: {output}/: comparison.md, comparison.json, comparison.png")


def markdown(rows: Sequence[Row], plan: Plan) -> str:
    """Return the comparison as a Markdown table, followed by a note on how the values were measured."""
    kinds = ["last", "best"] + (["test"] if plan.split == "test" else [])
    titles = {"last": "val, last epoch", "best": "val, best epoch", "test": "test, best epoch on val"}
    columns = ["model", "parameters", "multiply-adds", "ms an image"]
    columns += [f"{name} ({titles[kind]})" for name in SCORES[plan.task] for kind in kinds]
    lines = [[*columns, "seeds", "training"], ["---"] * (len(columns) + 2)]
    for row in rows:
        cells = [row.label, f"{row.params / 1e6:.2f} M", in_units(row.madds), f"{row.latency:.1f}"]
        cells += [mean_and_spread(row.scores[name][kind]) for name in SCORES[plan.task] for kind in kinds]
        lines.append([*cells, ", ".join(map(str, row.seeds)), f"{statistics.mean(row.seconds):.0f} s"])
    sizes = sorted({f"{height}x{width}" for height, width in (row.image_size for row in rows)})
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    note = (
        f"Images of {', '.join(sizes)} pixels. Scores: mean ± standard deviation over the seeds. Latency: eager "
        f"PyTorch {torch.__version__}, one image, median of {ROUNDS} interleaved rounds, {device}."
    )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + f"\n\n{note}\n"


def draw(rows: Sequence[Row], plan: Plan, path: Path) -> None:
    """Plot the main score of the task (top-1 accuracy or AP) against multiply-adds, parameters and latency.

    A dot shows the score of one seed. A marker shows the mean over the seeds, and an error bar the standard deviation.
    """
    name = SCORES[plan.task][0]
    kind, title = ("test", f"{name} on test") if plan.split == "test" else ("last", f"{name} on val, last epoch")
    panels = {
        "multiply-adds (millions)": [row.madds / 1e6 for row in rows],
        "parameters (millions)": [row.params / 1e6 for row in rows],
        "milliseconds an image": [row.latency for row in rows],
    }
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (label, places) in zip(axes, panels.items(), strict=True):
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            values = row.scores[name][kind]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "osD^vP*X"[number % 8]}
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            axis.plot([place] * len(values), values, linestyle="", alpha=0.35, markersize=4, **style)
            mean = statistics.mean(values)
            bar = [[spread], [min(spread, 1 - mean)]]  # no score is above 1
            axis.errorbar(place, mean, bar, capsize=4, markersize=8, label=row.label, **style)
        axis.set_xscale("log")
        narrow = max(places) < 10 * min(places)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if narrow else (1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(title)
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(rows)))
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, dpi=110)
