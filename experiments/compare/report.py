"""Report of a comparison: scores, cost and latency of each model."""

import json
import statistics
from collections.abc import Sequence

import torch

from experiments.interleaved import latencies
from experiments.plots import draw_against
from experiments.sweep.settings import group
from experiments.sweep.study import Sweep
from experiments.tables import as_table, in_units, mean_and_spread
from mobile_former.multiply_adds import cost
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
        name, kind = SCORES[sweep.plan.task][0], "test" if split == "test" else "last"
        quantities = {
            "multiply-adds (millions)": [row["madds"] / 1e6 for row in rows],
            "parameters (millions)": [row["params"] / 1e6 for row in rows],
            "milliseconds an image": [row["latency"] for row in rows],
        }
        scores = {row["label"]: row["scores"][name][kind] for row in rows}
        figure = draw_against(scores, quantities, f"{name} on {TITLES[kind]}")
        figure.savefig(sweep.output / "comparison.png", dpi=110)
        print(f"\n{table}\nwritten: {sweep.output}/: comparison.md, comparison.json, comparison.png")


def compare(sweep: Sweep, split: str) -> list[dict]:
    """Return a dictionary for each model, with the scores of its finished runs, its cost and its latency.

    ``latency`` is in milliseconds. The lists ``seeds`` and ``seconds`` (training times) have an entry for each run.
    ``scores`` is a dictionary from the name of a score to a dictionary of such lists: ``last`` (last epoch), ``best``
    (best epoch) and, if ``split`` is "test", ``test`` (best epoch, on the test data).
    """
    rows, models, trials = [], [], sweep.last_attempts()
    for setting in group(trials, sweep.plan):
        runs = [sweep.training(trials[number]) for number in setting.trials.values()]
        metrics = [json.loads(run.folder.metrics_json.read_text()) for run in runs]
        models.append(runs[0].model())
        (module, image), scores = models[-1], {}
        used, size = cost(module.model, tuple(image.shape[2:])), tuple(image.shape[2:])
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
        line["seeds"] = ", ".join(map(str, row["seeds"]))
        lines.append(line | {"training": f"{statistics.mean(row['seconds']):.0f} s"})
    sizes = ", ".join(sorted({"x".join(map(str, row["image_size"])) for row in rows}))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"{as_table(lines)}\nImages of {sizes} pixels. Scores: mean ± standard deviation over the seeds. Latency: "
        f"eager PyTorch {torch.__version__}, one image, median of {ROUNDS} interleaved rounds, {device}.\n"
    )
