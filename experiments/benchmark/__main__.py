"""Time models of this project and other networks, interleaved in one process: inference latency or training speed.

    python -m experiments.benchmark --peers path/to/onnx_files                         # one image, one thread
    python -m experiments.benchmark --threads 1 2 --batch_sizes 1 32 --forms eager deployed compiled onnx
    python -m experiments.benchmark --training true --peers timm/mobilenetv3_large_100 --forms eager compiled

A candidate is a model in one form: ``eager`` (the trainable model in evaluation mode), ``deployed`` (the model from
``mobile_former.deploy``), ``compiled`` (the deployed model with ``torch.compile``) or ``onnx`` (the deployed model
exported to ONNX, run by ONNX Runtime on the CPU). Detectors are timed without their postprocessing. All weights are
random. Each round times every candidate once, in random order. Each round gives the ratio of a candidate's time to the
baseline's time; the tables show the median ratio. The output folder gets benchmark.json, benchmark.md and
benchmark.png, or, for training, training.json, training.md and training.png.
"""

import contextlib
import itertools
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
from mobile_former.errors import InputError, first_line, nearest
from mobile_former.training.cli.command import require_writable, run_command
from mobile_former.training.cli.parser import Parser

TRAINABLE_FORMS = ("eager", "compiled")


def main() -> None:
    """Run the benchmark given by the command line, print the table and write the files."""
    parser = Parser(prog="python -m experiments.benchmark", description=__doc__.partition("\n")[0])
    parser.add_argument("--training", type=bool, default=False, help="time training steps instead of inference")
    parser.add_argument(
        "--models",
        type=str,
        nargs="+",
        default=None,
        help="classifiers or detectors of this project; default: all seven classifiers; training: mobile_former_294m",
    )
    parser.add_argument(
        "--peers",
        type=str,
        nargs="+",
        default=[],
        help="other networks: ONNX files, folders of ONNX files, timm/NAME or transformers/NAME",
    )
    parser.add_argument(
        "--earlier",
        type=Path | None,
        default=None,
        help="checkout of an earlier version of this project; its classifiers are timed too",
    )
    parser.add_argument(
        "--forms",
        type=str,
        nargs="+",
        default=None,
        help=f"from {', '.join(FORMS)}; default: eager deployed onnx; on a GPU: eager deployed; training: eager",
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=None,
        help="threads per operation on the CPU; default: 1; training: PyTorch's default",
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=None, help="default: 1; training: 256")
    parser.add_argument(
        "--image_size", type=int, nargs="+", default=[224], help="pixels: side of a square, or height and width"
    )
    parser.add_argument(
        "--baseline",
        type=str | None,
        default=None,
        help="candidate that ratios refer to, for example mobile_former_26m:eager; default: the first peer",
    )
    parser.add_argument(
        "--layouts", type=str, nargs="+", default=None, help=f"training only: from {', '.join(LAYOUTS)}; default: both"
    )
    parser.add_argument("--precision", type=str | None, default=None, help="training only: bf16 (default) or float32")
    parser.add_argument(
        "--trace",
        type=Path | None,
        default=None,
        help="training only: .json or .json.gz file for the trace of the first candidate",
    )
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before the timed ones")
    parser.add_argument("--repeat", type=int, default=1, help="runs of a candidate in each round; their median counts")
    parser.add_argument(
        "--device", type=str | None, default=None, help="cpu or cuda; default: cpu; training: the GPU if there is one"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="output folder")
    options = parser.parse_args()
    device = choose_device(options)
    complete(options, device)
    name = "training" if options.training else "benchmark"
    targets = {ending: options.output / f"{name}.{ending}" for ending in ("json", "md", "png")}
    for target in filter(None, (*targets.values(), options.trace)):  # before the timing, so that none is lost
        require_writable(target)

    machine = describe_machine(device)
    settings, table, draw = (
        (time_training(options, device), training_table, draw_training)
        if options.training
        else (time_latency(options, device), latency_table, draw_latency)
    )
    used = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    result = {"machine": machine, "options": used, "settings": settings}
    targets["json"].write_text(json.dumps(result, indent=2) + "\n")
    targets["md"].write_text(table(result))
    draw(result, targets["png"])
    print(f"\n{table(result)}\nwritten: {options.output}/: {', '.join(target.name for target in targets.values())}")
    if options.trace:
        print(f"written: {options.trace}, for chrome://tracing or ui.perfetto.dev")


def choose_device(options: Namespace) -> torch.device:
    """Return the device of ``--device``. Default: the CPU; for training, the GPU if there is one.

    Raises:
        InputError: the device is neither cpu nor cuda, or it is not available.
    """
    if options.device is None:
        return torch.device("cuda" if options.training and torch.cuda.is_available() else "cpu")
    if options.device.partition(":")[0] not in {"cpu", "cuda"}:
        raise InputError(f"--device {options.device}: give cpu or cuda")
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {options.device}: {first_line(error)}") from error
    return device


def complete(options: Namespace, device: torch.device) -> None:
    """Set the defaults that depend on other options, in place, and check all values.

    Raises:
        InputError: a value is out of range, or two options exclude each other.
    """
    training = options.training
    for name in ("layouts", "precision", "trace"):
        if options[name] is not None and not training:
            raise InputError(f"--{name} is an option of training: add --training true, or leave it out")
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
        raise InputError(f"--threads {options.threads}: training takes one number of threads, give only one")
    if options.trace and not options.trace.name.endswith((".json", ".json.gz")):
        raise InputError(f"--trace {options.trace}: give a name that ends in .json or .json.gz")
    if device.type == "cuda" and "onnx" in options.forms:
        raise InputError("--forms onnx: ONNX Runtime is timed on the CPU only: leave it out, or give --device cpu")


def time_latency(options: Namespace, device: torch.device) -> list[dict]:
    """Time inference for each number of threads and each batch size.

    Returns:
        One dictionary per number of threads and batch size: ``threads``, ``batch_size``, ``baseline`` (a label) and
        ``rows``. Each row has the results of one candidate from :func:`row`, plus ``madds`` (multiply-adds of an image)
        and ``speedup`` (factor over the eager form of the same model, None if the eager form is not timed).

    Raises:
        InputError: a candidate is unknown, cannot be built or cannot be run.
        FileNotFoundError: a peer does not exist.
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
                    figures = row(candidate, own, seconds[baseline], batch)
                    rows.append(figures | {"madds": candidate.madds, "speedup": speedup})
                settings.append({"threads": threads, "batch_size": batch, "baseline": baseline, "rows": rows})
    return settings


def build_candidates(options: Namespace, device: torch.device, scratch: Path) -> list[Candidate]:
    """Build all candidates: models of this project in each form, earlier versions of these models, and peers.

    Raises:
        InputError: a candidate is unknown or cannot be built.
        FileNotFoundError: a peer does not exist.
    """
    peers = find_peers(options.peers)
    size = tuple(options.image_size)
    if files := [peer for peer in peers if isinstance(peer, Path) and device.type == "cuda"]:
        raise InputError(
            f"--peers {files[0]}: ONNX Runtime is timed on the CPU only: leave it out, or give --device cpu"
        )
    theirs: list[Candidate] = []
    for peer in peers:  # first, so that a wrong peer fails before the slow export of our models
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
    """Time training steps for each batch size.

    Returns:
        One dictionary per batch size: ``threads``, ``batch_size``, ``baseline`` (a label), ``rows`` and ``trace``.
        Each row has the results of one candidate from :func:`row`, plus ``layout`` and ``memory`` (bytes, None on a
        CPU). ``trace`` is the dictionary from :func:`trace_as_dict`, or None if nothing is traced.

    Raises:
        InputError: a candidate is unknown, cannot be built or does not fit into memory.
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
                traced = trace_as_dict(candidates[0].label, milliseconds, kernels)
        rows = []
        for candidate in candidates:
            figures = row(candidate, seconds[candidate.label], seconds[baseline], batch)
            rows.append(figures | {"layout": candidate.layout, "memory": candidate.memory})
        settings.append(
            {"threads": options.threads[0], "batch_size": batch, "baseline": baseline, "rows": rows, "trace": traced}
        )
    return settings


def trainable(options: Namespace) -> dict[tuple[str, str, str], Callable[[], torch.nn.Module]]:
    """Check the names of the models and peers; return a dictionary of functions that each build one model to train.

    The keys are ``(name, form, memory layout)``.

    Raises:
        InputError: a name is unknown, or the named model is not a classifier.
    """
    for name in options.models:
        if name not in mobile_former.list_models():
            raise InputError(f"--models: no classifier is named {name!r}: {nearest(name, mobile_former.list_models())}")
    for peer in find_peers(options.peers):
        if isinstance(peer, Path):
            raise InputError(f"--peers {peer}: an ONNX file cannot be trained: give timm/NAME or transformers/NAME")
        create_network(peer)  # raises for an unknown name
    creators = {}
    for name in (*options.models, *options.peers):
        for form, layout in itertools.product(options.forms, options.layouts):
            creators[name, form, layout] = partial(create_network, name)
        # Eager only: the compiler would look up the earlier version's functions in the current package.
        if options.earlier and name in options.models:
            for layout in options.layouts:
                creators[f"earlier/{name}", "eager", layout] = partial(create_earlier, options.earlier, name)
    return creators


def row(candidate: Candidate | TrainedModel, seconds: Sequence[float], baseline: Sequence[float], batch: int) -> dict:
    """Compute the results of a candidate from the times that were measured.

    Args:
        candidate: the candidate.
        seconds: time of the candidate in each round, in seconds.
        baseline: time of the baseline in the same rounds, in seconds.
        batch: batch size.

    Returns:
        ``label``, ``model``, ``form`` and ``is_peer`` of the candidate; ``ms`` (median) and ``ms_quartiles``;
        ``images_per_s``; ``ratio`` (median over the rounds of the candidate's time divided by the baseline's time) and
        ``ratio_quartiles``; ``seconds`` as given.
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


def trace_as_dict(label: str, milliseconds: float, kernels: Sequence[Kernel]) -> dict:
    """Return the trace of a candidate as a dictionary for JSON: ``label``, ``step_ms`` and ``kernels``."""
    rows = [{"name": kernel.name, "calls": kernel.calls, "ms": kernel.milliseconds} for kernel in kernels]
    return {"label": label, "step_ms": milliseconds, "kernels": rows}


def choose_baseline(given: str | None, labels: Sequence[str], peers: Sequence[str]) -> str:
    """Return the label of the candidate that ratios refer to.

    Args:
        given: value of ``--baseline``. None selects the first peer, or the first candidate if there are no peers.
        labels: labels of all candidates.
        peers: labels of the peers.

    Raises:
        InputError: no candidate has the given label.
    """
    if given is not None and given not in labels:
        raise InputError(f"--baseline {given} is not timed: {nearest(given, labels)}")
    return given or (*peers, *labels)[0]


def fixed_images(batch: int, image_size: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return images of random noise, ``(batch, 3, H, W)``, made with a fixed seed."""
    return torch.randn(batch, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)


def time_rounds(
    runs: dict[str, Callable[[], object]], options: Namespace, device: torch.device, title: str
) -> dict[str, list[float]]:
    """Time all candidates in interleaved rounds; return the seconds of each timed round by the candidate's label."""
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
    """Let ``torch.compile`` create separate kernels for each model that is compiled in the ``with`` block.

    An error is raised where ``torch.compile`` would otherwise fall back to running a model uncompiled.
    """
    torch.compiler.reset()
    # The limit counts all models that share a forward function.
    with torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True):
        yield


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar and yield a function that advances the bar by one; without a terminal, print the title.

    The bar has no refresh thread, because the thread would disturb the timing.
    """
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
