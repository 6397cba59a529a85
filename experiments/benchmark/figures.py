"""Plots of the benchmark's results."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from experiments.benchmark.candidates import FORMS
from experiments.benchmark.machine import in_words
from experiments.benchmark.tables import setting_title
from mobile_former.training.run.figures import COLOURS

MARKERS = "osD^"  # one per form
LINES = ("-", "--", ":", "-.")  # one per model family


def draw_latency(result: dict, path: Path) -> None:
    """Plot latency against multiply-adds on logarithmic axes.

    There is one panel for each combination of number of threads and batch size. There is one line for each family of
    this project's models (such as the classifiers) in each form (such as compiled). Each other network is a labelled
    point.

    Args:
        result: content of ``benchmark.json``.
        path: path of the picture to write.
    """
    settings = result["settings"]
    columns = min(2, len(settings))
    lines = -(-len(settings) // columns)
    figure = Figure(figsize=(1.6 + 6.2 * columns, 1.2 + 4.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes[len(settings) :]:
        axis.set_axis_off()
    labelled = {}
    for axis, setting in zip(axes, settings, strict=False):
        _draw_setting(axis, setting)
        handles, labels = axis.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=min(2 * columns, len(labelled)))
    _subtitle(figure, result)
    figure.savefig(path, dpi=130)


def draw_training(result: dict, path: Path) -> None:
    """Plot the training throughput of each model as a bar. On a GPU, a second panel shows the peak memory.

    Args:
        result: content of ``training.json``.
        path: path of the picture to write.
    """
    settings = result["settings"]
    on_gpu = settings[0]["rows"][0]["memory"] is not None
    most = max(len(setting["rows"]) for setting in settings)
    height = (1.2 + 0.42 * most) * len(settings) + 0.5
    figure = Figure(figsize=(13 if on_gpu else 9, height), layout="constrained")
    grid = figure.subplots(len(settings), 1 + on_gpu, squeeze=False, sharey="row")
    for axes, setting in zip(grid, settings, strict=True):
        rows = setting["rows"][::-1]  # draws the first row at the top
        names = [f"{row['model']}, {row['form']}, {row['layout'].replace('_', ' ')}" for row in rows]
        colours = [COLOURS[4] if row["is_peer"] else COLOURS[0] for row in rows]
        speeds = [row["images_per_s"] for row in rows]
        batch = setting["batch_size"]
        ends = [[batch / (row["ms_quartiles"][end] / 1000) for row in rows] for end in (1, 0)]
        spread = [[abs(end - speed) for end, speed in zip(each, speeds, strict=True)] for each in ends]
        bars = axes[0].barh(range(len(rows)), speeds, color=colours, xerr=spread, capsize=3)
        axes[0].bar_label(bars, [f"{speed:.3g}" if speed < 1000 else f"{speed:.0f}" for speed in speeds], padding=6)
        axes[0].set_yticks(range(len(rows)), names, parse_math=False)
        axes[0].set_xlabel(f"images per second, batches of {batch}")
        if on_gpu:
            memory = [row["memory"] / 2**30 for row in rows]
            bars = axes[1].barh(range(len(rows)), memory, color=colours)
            axes[1].bar_label(bars, [f"{value:.1f}" for value in memory], padding=4)
            axes[1].set_xlabel("peak memory of a step (GiB)")
        for axis in axes:
            axis.margins(x=0.15)
            axis.grid(alpha=0.3, axis="x")
            axis.set_axisbelow(True)
    _subtitle(figure, result)
    figure.savefig(path, dpi=130)


def _draw_setting(axis: Axes, setting: dict) -> None:
    rows, batch = setting["rows"], setting["batch_size"]
    families = list(dict.fromkeys(_family(row) for row in rows if not row["is_peer"]))
    for form, colour, marker in zip(FORMS, COLOURS, MARKERS, strict=False):
        for family, line in zip(families, LINES * len(families), strict=False):
            own = [row for row in rows if not row["is_peer"] and (_family(row), row["form"]) == (family, form)]
            if own:
                places = zip(*sorted((row["madds"] / 1e6, row["ms"] / batch) for row in own), strict=True)
                axis.plot(*places, color=colour, marker=marker, linestyle=line, label=f"{family}, {form}")
        theirs = [row for row in rows if row["is_peer"] and row["form"] == form]
        places = [(row["madds"] / 1e6, row["ms"] / batch) for row in theirs]
        if places:
            hollow = {"linestyle": "", "markerfacecolor": "white", "markersize": 8}
            axis.plot(*zip(*places, strict=True), color=colour, marker=marker, label=f"others, {form}", **hollow)
        for row, place in zip(theirs, places, strict=True):
            _name(axis, row["model"].removesuffix(".onnx"), place, below=True)
    own = sorted((row for row in rows if not row["is_peer"]), key=lambda row: row["ms"])
    # One label per variant, earlier versions included, above its slowest point.
    for (name, madds), slowest in {(row["model"].rpartition("_")[2], row["madds"]): row for row in own}.items():
        _name(axis, name, (madds / 1e6, slowest["ms"] / batch))
    axis.loglog()
    for direction in (axis.xaxis, axis.yaxis):
        direction.set_major_locator(LogLocator(subs=(1, 2, 5)))
        direction.set_major_formatter(StrMethodFormatter("{x:g}"))
        direction.set_minor_formatter(NullFormatter())
    axis.margins(0.12)
    axis.set(xlabel="multiply-adds per image (millions)", ylabel="milliseconds per image")
    axis.set_title(setting_title(setting), fontsize=11)
    axis.grid(alpha=0.3)


def _family(row: dict) -> str:
    return row["model"].rpartition("_")[0]


def _name(axis: Axes, text: str, place: tuple[float, float], below: bool = False) -> None:
    axis.annotate(
        text,
        place,
        xytext=(0, -9 if below else 8),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        fontsize=8,
        parse_math=False,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
    )


def _subtitle(figure: Figure, result: dict) -> None:
    options = result["options"]
    height, width = options["image_size"]
    precision = f"{options['precision']}, " if options["training"] else ""
    method = f"{height}x{width} pixels, {precision}medians of {options['rounds']} interleaved rounds"
    figure.suptitle(f"{in_words(result['machine'])}\n{method}", fontsize=8, parse_math=False)
