"""Markdown tables of the benchmark's results."""

from experiments.benchmark.candidates import FORMS
from experiments.benchmark.machine import in_words
from experiments.tables import in_units

KERNELS = 15  # rows in the table of a trace
LONGEST_NAME = 80  # characters; names of template kernels have thousands


def latency_table(result: dict) -> str:
    """Return two tables of latencies for each number of threads and batch size, as Markdown.

    The first table has a row for each model and a column for each form, such as compiled. The second table has a row
    for each model in each form, with the quartiles of the times.

    Args:
        result: content of ``benchmark.json``.
    """
    parts = ["# Latency", _measured(result, "")]
    header = ["model", "form", "ms (quartiles)", "images/s", "ratio (quartiles)", "speed-up over eager"]
    for setting in result["settings"]:
        work = "image" if setting["batch_size"] == 1 else f"batch of {setting['batch_size']}"
        parts += [f"## {setting_title(setting)}", _by_form(setting["rows"])]
        parts.append(f"Milliseconds per {work}; in parentheses: ratio to {setting['baseline']}.")
        lines = []
        for row in setting["rows"]:
            speedup = "" if row["speedup"] is None or row["form"] == "eager" else f"{row['speedup']:.2f}"
            lines.append([row["model"], row["form"], *_times(row), speedup])
        parts.append(_table(header, lines))
    return "\n\n".join(parts) + "\n"


def training_table(result: dict) -> str:
    """Return a table of throughput and memory for each batch size, as Markdown.

    If a training step was traced, a table of its slowest kernels follows.

    Args:
        result: content of ``training.json``.
    """
    step = f", {result['options']['precision']}, forward, loss, backward and AdamW"
    parts = ["# Training", _measured(result, step)]
    header = [
        "model",
        "form",
        "layout",
        "ms per step (quartiles)",
        "images/s",
        "ratio of times (quartiles)",
        "GiB",
        "saved",
    ]
    for setting in result["settings"]:
        lines = []
        for row in setting["rows"]:
            memory = "" if row["memory"] is None else f"{row['memory'] / 2**30:.2f}"
            saved = f"{row['saved'] / 2**30:.2f}"
            lines.append([row["model"], row["form"], row["layout"], *_times(row), memory, saved])
        parts += [f"## {setting_title(setting)}", _table(header, lines)]
        parts.append(
            f"Ratio: time of a step over that of {setting['baseline']}. GiB: peak of allocated memory. Saved: GiB kept "
            "for the backward pass, without weights."
        )
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


def _measured(result: dict, step: str) -> str:
    """Return a paragraph that describes the machine and the measurement.

    Args:
        result: content of ``benchmark.json`` or ``training.json``.
        step: text about a training step, which follows the size of the images in the paragraph. Empty for inference.
    """
    options, machine = result["options"], result["machine"]
    workload = f"images of {options['image_size'][0]}x{options['image_size'][1]} pixels{step}"
    load = "" if machine["load"] is None else f" Load average at the start: {machine['load']}."
    runs = "" if options["repeat"] == 1 else f", each the median of {options['repeat']} runs"
    return f"{in_words(machine)}. Medians of {options['rounds']} interleaved rounds{runs}; {workload}.{load}"


def setting_title(setting: dict) -> str:
    """Return the number of threads and the batch size as text.

    Args:
        setting: dictionary with the keys ``threads`` and ``batch_size``.
    """
    threads = setting["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}, batch {setting['batch_size']}"


def _times(row: dict) -> list[str]:
    """Return three table cells for a result: milliseconds, images per second, and time as a ratio to the baseline."""
    return [_spread(row, "ms"), f"{row['images_per_s']:.1f}", _spread(row, "ratio")]


def _spread(row: dict, name: str) -> str:
    low, high = row[f"{name}_quartiles"]
    return f"{row[name]:.2f} ({low:.2f} to {high:.2f})"


def _short(name: str) -> str:
    name = " ".join(name.replace("|", "/").replace("`", "'").split())
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def _table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])
