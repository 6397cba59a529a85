"""Markdown tables of the benchmark's results."""

from experiments.benchmark.candidates import FORMS
from experiments.benchmark.machine import in_words
from experiments.runs import in_units

KERNELS = 15  # rows in the table of a trace
LONGEST_NAME = 80  # characters; names of template kernels have thousands


def latency_table(result: dict) -> str:
    """Return the tables of latencies, two tables for each number of threads and batch size.

    The first table has a row for each model and a column for each form. The second table has the quartiles of each
    candidate.

    Args:
        result: content of ``benchmark.json``.
    """
    options = result["options"]
    height, width = options["image_size"]
    parts = ["# Latency", _measured(result, f"images of {height}x{width} pixels")]
    for setting in result["settings"]:
        rows, batch = setting["rows"], setting["batch_size"]
        parts += [f"## {_setting(setting)}", _by_form(rows)]
        parts.append(
            f"Milliseconds per {'image' if batch == 1 else f'batch of {batch}'}; in parentheses: ratio to "
            f"{setting['baseline']}."
        )
        header = ["model", "form", "ms (quartiles)", "images/s", "ratio (quartiles)", "speed-up over eager"]
        lines = [
            [
                row["model"],
                row["form"],
                _spread(row["ms"], row["ms_quartiles"]),
                f"{row['images_per_s']:.1f}",
                _spread(row["ratio"], row["ratio_quartiles"]),
                "" if row["speedup"] is None or row["form"] == "eager" else f"{row['speedup']:.2f}",
            ]
            for row in rows
        ]
        parts.append(_table(header, lines))
    return "\n\n".join(parts) + "\n"


def training_table(result: dict) -> str:
    """Return a table of throughput and memory for each batch size, and a table of kernels if a step was traced.

    Args:
        result: content of ``training.json``.
    """
    options = result["options"]
    height, width = options["image_size"]
    step = f"images of {height}x{width} pixels, {options['precision']}, forward, loss, backward and AdamW"
    parts = ["# Training", _measured(result, step)]
    for setting in result["settings"]:
        header = ["model", "form", "layout", "ms per step (quartiles)", "images/s", "ratio of times (quartiles)", "GiB"]
        lines = [
            [
                row["model"],
                row["form"],
                row["layout"],
                _spread(row["ms"], row["ms_quartiles"]),
                f"{row['images_per_s']:.1f}",
                _spread(row["ratio"], row["ratio_quartiles"]),
                "" if row["memory"] is None else f"{row['memory'] / 2**30:.2f}",
            ]
            for row in setting["rows"]
        ]
        parts += [f"## {_setting(setting)}", _table(header, lines)]
        parts.append(f"Ratio: time of a step over that of {setting['baseline']}. GiB: peak of allocated memory.")
        if setting["trace"]:
            parts.append(_trace(setting["trace"]))
    return "\n\n".join(parts) + "\n"


def _by_form(rows: list[dict]) -> str:
    forms = [form for form in FORMS if any(row["form"] == form for row in rows)]
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["form"]: row for row in rows if row["model"] == model}
        cells = [f"{own[form]['ms']:.2f} ({own[form]['ratio']:.2f})" if form in own else "" for form in forms]
        lines.append([model, in_units(next(iter(own.values()))["madds"]), *cells])
    return _table(["model", "multiply-adds", *forms], lines)


def _trace(trace: dict) -> str:
    total = sum(kernel["ms"] for kernel in trace["kernels"])
    lines = [
        [f"`{_short(kernel['name'])}`", f"{kernel['calls']:g}", f"{kernel['ms']:.3f}", f"{kernel['ms'] / total:.1%}"]
        for kernel in trace["kernels"][:KERNELS]
    ]
    return (
        f"Kernels of a step of {trace['label']}: they take {total:.1f} of the step's {trace['step_ms']:.1f} ms under "
        "the profiler.\n\n" + _table(["kernel", "calls per step", "ms per step", "share of all kernels"], lines)
    )


def _measured(result: dict, workload: str) -> str:
    options, machine = result["options"], result["machine"]
    load = "" if machine["load"] is None else f" Load average at the start: {machine['load']}."
    runs = "" if options["repeat"] == 1 else f", each the median of {options['repeat']} runs"
    return f"{in_words(machine)}. Medians of {options['rounds']} interleaved rounds{runs}; {workload}.{load}"


def _setting(setting: dict) -> str:
    threads = setting["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}, batch {setting['batch_size']}"


def _spread(middle: float, ends: list[float]) -> str:
    return f"{middle:.2f} ({ends[0]:.2f} to {ends[1]:.2f})"


def _short(name: str) -> str:
    name = " ".join(name.replace("|", "/").replace("`", "'").split())
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def _table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])
