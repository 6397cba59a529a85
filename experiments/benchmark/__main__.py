"""Time models and their peers by turns in one process: latency in several forms, or training's throughput.

    python -m experiments.benchmark --peers path/to/onnx_files                         # one image, one thread
    python -m experiments.benchmark --threads 1 2 --batch_sizes 1 32 --forms eager deployed compiled onnx
    python -m experiments.benchmark --training true --peers timm/mobilenetv3_large_100 --forms eager compiled

Forms: ``eager`` (the model that is trained, in evaluation mode), ``deployed`` (``mobile_former.deploy`` of it),
``compiled`` (``torch.compile`` of that) and ``onnx`` (that, exported, by ONNX Runtime on the CPU). Detectors are timed
without what turns their outputs into boxes. All weights are random. A candidate takes its turn once a round, in an
order drawn anew; ratios are medians of the rounds' ratios. Written to the output folder: benchmark.json, benchmark.md
and benchmark.png, or training.json, training.md and training.png.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import Progress

import mobile_former
from experiments.benchmark.candidates import (
    CLASSES,
    FORMS,
    Candidate,
    create_network,
    earlier_candidate,
    file_candidate,
    find_peers,
    model_candidates,
)
from experiments.benchmark.earlier import create_earlier
from experiments.benchmark.figures import draw_latency, draw_training
from experiments.benchmark.machine import describe_machine
from experiments.benchmark.tables import latency_table, training_table
from experiments.benchmark.training_speed import LAYOUTS, PRECISIONS, Kernel, TrainedModel, trace_step, train_model
from experiments.interleaved import interleave, paired, quartiles
from experiments.matching import now
from mobile_former.errors import InputError, nearest
from mobile_former.training.cli.command import Parser, require_writable, run_command

TRAINABLE_FORMS = ("eager", "compiled")


def main() -> None:
    """Time by the command line's options."""
    parser = Parser(prog="python -m experiments.benchmark", description=__doc__.partition("\n")[0])
    parser.add_argument("--training", type=bool, default=False, help="time training steps instead of inference")
    parser.add_argument(
        "--models",
        type=str,
        nargs="+",
        default=None,
        help=(
            "classifiers or detectors of this project; default: all seven classifiers, of training mobile_former_294m"
        ),
    )
    parser.add_argument(
        "--peers",
        type=str,
        nargs="+",
        default=[],
        help="ONNX files, folders of them, timm/NAME or transformers/NAME",
    )
    parser.add_argument(
        "--earlier",
        type=Path | None,
        default=None,
        help="a checkout of an earlier version of this project, whose classifiers are timed as well",
    )
    parser.add_argument(
        "--forms",
        type=str,
        nargs="+",
        default=None,
        help=(
            f"of {', '.join(FORMS)}; default: all but compiled; on a GPU all but compiled and onnx; of training eager"
        ),
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=None,
        help="threads of an operation on the CPU; default: 1, of training as many as PyTorch takes",
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=None, help="default: 1, of training 256")
    parser.add_argument("--image_size", type=int, nargs="+", default=[224], help="pixels: a side, or height and width")
    parser.add_argument(
        "--baseline",
        type=str | None,
        default=None,
        help="what ratios refer to, as mobile_former_26m:eager; default: the first peer",
    )
    parser.add_argument(
        "--layouts",
        type=str,
        nargs="+",
        default=None,
        help=f"of training: {', '.join(LAYOUTS)}; default: both",
    )
    parser.add_argument("--precision", type=str | None, default=None, help="of training: bf16 (default) or float32")
    parser.add_argument(
        "--trace",
        type=Path | None,
        default=None,
        help="of training: a .json or .json.gz to write, the trace of the first candidate",
    )
    parser.add_argument("--rounds", type=int, default=30, help="turns of each candidate that count")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before these that do not")
    parser.add_argument("--repeat", type=int, default=1, help="runs in a turn, of which the median counts")
    parser.add_argument(
        "--device",
        type=str | None,
        default=None,
        help="cpu or cuda; default: cpu, of training the GPU where there is one",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="folder to write")
    options = parser.parse_args()
    device = choose_device(options)
    complete(options, device)
    name = "training" if options.training else "benchmark"
    targets = {ending: options.output / f"{name}.{ending}" for ending in ("json", "md", "png")}
    for target in filter(None, (*targets.values(), options.trace)):  # before the work, so that none is lost
        require_writable(target)

    machine = describe_machine(device)
    settings, table, draw = (
        (time_training(options, device), training_table, draw_training)
        if options.training
        else (time_latency(options, device), latency_table, draw_latency)
    )
    told = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    result = {"machine": machine, "options": told, "settings": settings}
    targets["json"].write_text(json.dumps(result, indent=2) + "\n")
    targets["md"].write_text(table(result))
    draw(result, targets["png"])
    print(f"\n{table(result)}\nwritten: {options.output}/: {', '.join(target.name for target in targets.values())}")
    if options.trace:
        print(f"written: {options.trace}, for chrome://tracing or ui.perfetto.dev")


def choose_device(options: Namespace) -> torch.device:
    """The device that is asked for, or the default.

    Raises:
        InputError: no device of PyTorch's, or one that is not there.
    """
    if options.device is None:
        return torch.device("cuda" if options.training and torch.cuda.is_available() else "cpu")
    if options.device.partition(":")[0] not in {"cpu", "cuda"}:
        raise InputError(f"--device {options.device}: give cpu or cuda")
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {options.device}: {str(error).splitlines()[0]}") from error
    return device


def complete(options: Namespace, device: torch.device) -> None:
    """Put in the defaults that depend on other options, in place, and check.

    Raises:
        InputError: values out of range, or options that do not go together.
    """
    training = options.training
    for name in ("layouts", "precision", "trace"):
        if options[name] is not None and not training:
            raise InputError(f"--{name} is an option of training: give --training true, or leave it out")
    defaults = {
        "models": ["mobile_former_294m"] if training else mobile_former.list_models(),
        "forms": ["eager"] if training else ["eager", "deployed", "onnx"] if device.type == "cpu" else FORMS[:2],
        "threads": [torch.get_num_threads()] if training else [1],
        "batch_sizes": [256] if training else [1],
        "layouts": list(LAYOUTS),
        "precision": "bf16",
    }
    for name, value in defaults.items():
        if options[name] is None:
            options[name] = value
        if isinstance(options[name], list | tuple):
            options[name] = list(dict.fromkeys(options[name]))
    forms = TRAINABLE_FORMS if training else FORMS
    for name, given, known in (
        ("forms", options.forms, forms),
        ("layouts", options.layouts, LAYOUTS),
        ("precision", [options.precision], PRECISIONS),
    ):
        for value in given:
            if value not in known:
                raise InputError(f"--{name} {value}: {nearest(value, known)}")
    options.forms = [form for form in FORMS if form in options.forms]
    for name, least in (("threads", 1), ("batch_sizes", 1), ("image_size", 32), ("rounds", 1), ("repeat", 1)):
        for value in options[name] if isinstance(options[name], list) else [options[name]]:
            if value < least:
                raise InputError(f"--{name} is {value}: give at least {least}")
    if options.warmup < 0:
        raise InputError(f"--warmup is {options.warmup}: give at least 0")
    if len(options.image_size) > 2:
        raise InputError("--image_size: give one side, or height and width")
    options.image_size = [options.image_size[0], options.image_size[-1]]
    if training and len(options.threads) > 1:
        raise InputError("--threads: training is timed with one number of threads")
    if options.trace and not options.trace.name.endswith((".json", ".json.gz")):
        raise InputError(f"--trace {options.trace}: give a name that ends in .json or .json.gz")
    if device.type == "cuda" and "onnx" in options.forms:
        raise InputError("--forms onnx: ONNX Runtime is timed on the CPU; leave it out, or give --device cpu")


def time_latency(options: Namespace, device: torch.device) -> list[dict]:
    """Time inference, for each number of threads and each batch size.

    Returns:
        For each of these settings ``threads``, ``batch_size``, ``baseline`` (a label) and ``rows``, one a candidate:
        see :func:`row`; ``madds`` (of an image) and ``speedup`` (times as fast as its eager form, None where that is
        not timed) besides.

    Raises:
        InputError: a candidate that is not known, cannot be built or cannot be run.
        FileNotFoundError: no such peer.
    """
    settings = []
    with tempfile.TemporaryDirectory() as scratch:
        candidates = build_candidates(options, device, Path(scratch))
        peers = [candidate.label for candidate in candidates if candidate.is_peer]
        baseline = choose_baseline(options.baseline, [candidate.label for candidate in candidates], peers)
        for threads in options.threads:
            for batch in options.batch_sizes:
                torch.set_num_threads(threads)
                images = fixed_images(batch, options.image_size, device)
                title = f"threads {threads}, batch {batch}"
                runs = {}
                with compiling():
                    with progress(f"preparing: {title}", len(candidates)) as prepared:
                        for candidate in candidates:
                            runs[candidate.label] = candidate.prepare(threads, images)
                            prepared()
                    with torch.inference_mode():
                        seconds = time_rounds(runs, options, device, title)
                rows = []
                for candidate in candidates:
                    own = seconds[candidate.label]
                    eager = seconds.get(f"{candidate.model}:eager")
                    speedup = None if eager is None else quartiles(paired(eager, own))[1]
                    told = row(candidate, own, seconds[baseline], batch)
                    rows.append(told | {"madds": candidate.madds, "speedup": speedup})
                settings.append({"threads": threads, "batch_size": batch, "baseline": baseline, "rows": rows})
    return settings


def build_candidates(options: Namespace, device: torch.device, scratch: Path) -> list[Candidate]:
    """All that is to be timed: models in their forms, earlier ones, peers.

    Raises:
        InputError: a candidate that is not known, or cannot be built.
        FileNotFoundError: no such peer.
    """
    peers = find_peers(options.peers)
    size = tuple(options.image_size)
    if files := [peer for peer in peers if isinstance(peer, Path) and device.type == "cuda"]:
        raise InputError(f"--peers {files[0]}: ONNX Runtime is timed on the CPU; leave it out, or give --device cpu")
    theirs: list[Candidate] = []
    for peer in peers:  # first, since a mistake in one of them shows at once, and exporting ours takes long
        if isinstance(peer, Path):
            theirs.append(file_candidate(peer, size))
        else:
            theirs += model_candidates(peer, options.forms, size, device, scratch)
    ours: list[Candidate] = []
    with progress("building", len(options.models)) as built:
        for name in options.models:
            ours += model_candidates(name, options.forms, size, device, scratch)
            if options.earlier and name in mobile_former.list_models():
                ours.append(earlier_candidate(options.earlier, name, ours[-1].madds, device))
            built()
    return [*ours, *theirs]


def time_training(options: Namespace, device: torch.device) -> list[dict]:
    """Time training steps, for each batch size.

    Returns:
        For each batch size ``threads``, ``batch_size``, ``baseline`` (a label), ``rows``, one a candidate: see
        :func:`row`; ``layout`` and ``memory`` (bytes, None on a CPU) besides; and ``trace``: None, or ``label``,
        ``step_ms`` and ``kernels`` of what was traced.

    Raises:
        InputError: a candidate that is not known, cannot be built or does not fit.
    """
    creators = trainable(options)
    labels = [":".join(key) for key in creators]
    peers = [label for label, (name, _, _) in zip(labels, creators, strict=True) if name in options.peers]
    baseline = choose_baseline(options.baseline, labels, peers)
    torch.set_num_threads(options.threads[0])
    settings = []
    for batch in options.batch_sizes:
        images = fixed_images(batch, options.image_size, device)
        classes = torch.arange(batch, device=device) % CLASSES["classifier"]
        with compiling():
            candidates: list[TrainedModel] = []
            with progress("building", len(creators)) as built:
                for (name, form, layout), create in creators.items():
                    candidates.append(
                        train_model(
                            name,
                            create,
                            form=form,
                            layout=layout,
                            precision=options.precision,
                            images=images,
                            labels=classes,
                            is_peer=name in options.peers,
                        )
                    )
                    built()
            runs = {candidate.label: candidate.step for candidate in candidates}
            seconds = time_rounds(runs, options, device, f"training, batch {batch}")
            traced = None
            if options.trace and batch == options.batch_sizes[0]:
                milliseconds, kernels = trace_step(candidates[0].step, device, options.trace)
                traced = tell_trace(candidates[0].label, milliseconds, kernels)
        rows = []
        for candidate in candidates:
            told = row(candidate, seconds[candidate.label], seconds[baseline], batch)
            rows.append(told | {"layout": candidate.layout, "memory": candidate.memory})
        settings.append(
            {
                "threads": options.threads[0],
                "batch_size": batch,
                "baseline": baseline,
                "rows": rows,
                "trace": traced,
            }
        )
    return settings


def trainable(options: Namespace) -> dict[tuple[str, str, str], Callable[[], torch.nn.Module]]:
    """What builds each model that is to be trained, by name, form and layout; mistakes in names show here.

    Raises:
        InputError: a name that is not known, or not that of a classifier.
    """
    for name in options.models:
        if name not in mobile_former.list_models():
            raise InputError(f"--models: no classifier is {name!r}: {nearest(name, mobile_former.list_models())}")
    for peer in find_peers(options.peers):
        if isinstance(peer, Path):
            raise InputError(f"--peers {peer}: an ONNX file cannot be trained; give timm/NAME or transformers/NAME")
        create_network(peer)  # whether there is one
    ways = [(form, layout) for form in options.forms for layout in options.layouts]
    creators = {}
    for name in (*options.models, *options.peers):
        for form, layout in ways:
            creators[name, form, layout] = partial(create_network, name)
        # The compiler would look up the earlier version's functions in this one.
        if options.earlier and name in options.models:
            for layout in options.layouts:
                creators[f"earlier/{name}", "eager", layout] = partial(create_earlier, options.earlier, name)
    return creators


def row(candidate: Candidate | TrainedModel, seconds: Sequence[float], baseline: Sequence[float], batch: int) -> dict:
    """A candidate's figures.

    Args:
        candidate: whose they are.
        seconds: of its turns.
        baseline: of the baseline's turns, in the same rounds.
        batch: images in each.

    Returns:
        ``label``, ``model``, ``form``, ``is_peer``; ``ms``, the median of a turn, and ``ms_quartiles``;
        ``images_per_s``; ``ratio`` of the turn to the baseline's in the same round, the median, and
        ``ratio_quartiles``; ``seconds``.
    """
    low, middle, high = quartiles(seconds)
    ratio_low, ratio, ratio_high = quartiles(paired(seconds, baseline))
    return {
        "label": candidate.label,
        "model": candidate.model,
        "form": candidate.form,
        "is_peer": candidate.is_peer,
        "ms": 1000 * middle,
        "ms_quartiles": [1000 * low, 1000 * high],
        "images_per_s": batch / middle,
        "ratio": ratio,
        "ratio_quartiles": [ratio_low, ratio_high],
        "seconds": list(seconds),
    }


def tell_trace(label: str, milliseconds: float, kernels: Sequence[Kernel]) -> dict:
    """What was traced, as data."""
    told = [{"name": kernel.name, "calls": kernel.calls, "ms": kernel.milliseconds} for kernel in kernels]
    return {"label": label, "step_ms": milliseconds, "kernels": told}


def choose_baseline(given: str | None, labels: Sequence[str], peers: Sequence[str]) -> str:
    """The label of what ratios refer to.

    Args:
        given: the one that is asked for.
        labels: of all candidates.
        peers: those of them that are other networks'; the default is the first of these, or else the first of all.

    Raises:
        InputError: no candidate has the given label.
    """
    if given is not None and given not in labels:
        raise InputError(f"--baseline {given} is not among what is timed: {nearest(given, labels)}")
    return given or (*peers, *labels)[0]


def fixed_images(batch: int, image_size: Sequence[int], device: torch.device) -> torch.Tensor:
    """Images ``(batch, 3, H, W)`` of noise, always the same."""
    return torch.randn(batch, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)


def time_rounds(
    runs: dict[str, Callable[[], object]], options: Namespace, device: torch.device, title: str
) -> dict[str, list[float]]:
    """Seconds of each candidate's turns."""
    with progress(title, options.warmup + options.rounds) as advance:
        return interleave(
            runs,
            rounds=options.rounds,
            warmup=options.warmup,
            repeat=options.repeat,
            clock=partial(now, device),
            after_round=advance,
        )


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Within this, every model that is compiled has its own kernels, and none falls back to eager unnoticed."""
    torch.compiler.reset()
    # The limit counts all models whose forward is the same function.
    with torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True):
        yield


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar that moves when it is told to: one that redraws itself would take time from what is measured."""
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        print(f"{title} …", flush=True)
        yield lambda: None
        return
    with Progress(console=terminal, auto_refresh=False, transient=True) as bar:
        task = bar.add_task(title, total=total)
        bar.refresh()

        def advance() -> None:
            bar.update(task, advance=1, refresh=True)

        yield advance


if __name__ == "__main__":
    run_command(main)
