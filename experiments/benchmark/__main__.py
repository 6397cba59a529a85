"""Time inference or training steps of this project's models and of other networks, in one process.

    python -m experiments.benchmark --peers path/to/onnx_files                         # one image, one thread
    python -m experiments.benchmark --threads 1 2 --batch_sizes 1 32 --forms eager deployed compiled onnx
    python -m experiments.benchmark --training true --peers timm/mobilenetv3_large_100 --forms eager compiled

Inference is timed in one or several forms:

- ``eager``: the trainable model in evaluation mode
- ``deployed``: the model from ``mobile_former.deploy``
- ``compiled``: the deployed model with ``torch.compile``
- ``onnx``: the deployed model, exported to ONNX and run by ONNX Runtime on the CPU

Training is timed for the trainable model in training mode, in the form ``eager`` or ``compiled``.

A candidate is a model in one form. Detectors are timed without their postprocessing. All weights are random. Each round
times every candidate once, in random order. In each round, the time of a candidate is divided by the time of the
baseline, which is one of the candidates. The tables show the median of this ratio over the rounds. The command writes
benchmark.json, benchmark.md and benchmark.png to the output folder. For training, it writes training.json, training.md
and training.png.
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

import detection
import mobile_former
from experiments.benchmark.candidates import (
    CLASSES,
    FORMS,
    Candidate,
    create_earlier,
    create_network,
    find_peers,
    model_candidates,
    prepare_module,
)
from experiments.benchmark.figures import draw_latency, draw_training
from experiments.benchmark.machine import describe_machine
from experiments.benchmark.onnx_graph import OnnxGraph
from experiments.benchmark.tables import latency_table, training_table
from experiments.benchmark.training_speed import LAYOUTS, PRECISIONS, TrainedModel, trace_step, train_model
from experiments.interleaved import interleave, paired, quartiles
from experiments.matching import now
from mobile_former.errors import InputError, first_line, nearest
from mobile_former.training.baselines import is_baseline
from mobile_former.training.cli.command import require_writable, run_command
from mobile_former.training.cli.parser import Parser

TRAINABLE_FORMS = ("eager", "compiled")


def main() -> None:
    """Run the benchmark with the options of the command line, print the table and write the files."""
    parser = Parser(prog="python -m experiments.benchmark", description=__doc__.partition("\n")[0])
    parser.add_argument("--training", type=bool, default=False, help="time training steps instead of inference")
    parser.add_argument(
        "--models", nargs="+", help="models of this project; default: all classifiers; training: mobile_former_294m"
    )
    parser.add_argument(
        "--peers", nargs="+", default=[], help="other networks: .onnx files or folders, timm/NAME or transformers/NAME"
    )
    parser.add_argument(
        "--earlier", type=Path | None, help="checkout of an earlier version; its classifiers are timed too"
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        help=f"from {', '.join(FORMS)}; default: eager deployed onnx; on a GPU: eager deployed; training: eager",
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", help="threads per operation on the CPU; default: 1; training: PyTorch's"
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="default: 1; training: 256")
    parser.add_argument(
        "--image_size", type=int, nargs="+", default=[224], help="pixels: side of a square, or height and width"
    )
    parser.add_argument(
        "--baseline", help="candidate that ratios refer to, such as mobile_former_26m:eager; default: the first peer"
    )
    parser.add_argument("--layouts", nargs="+", help=f"training only: from {', '.join(LAYOUTS)}; default: both")
    parser.add_argument("--precision", help="training only: bf16 (default) or float32")
    parser.add_argument(
        "--trace", type=Path | None, help="training only: .json or .json.gz file for the first candidate's trace"
    )
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before the timed ones")
    parser.add_argument("--repeat", type=int, default=1, help="runs of a candidate in each round; their median counts")
    parser.add_argument("--device", help="cpu or cuda; default: cpu; training: the GPU if there is one")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), help="output folder")
    options = parser.parse_args()
    device = choose_device(options)
    complete(options, device)
    name = "training" if options.training else "benchmark"
    targets = {ending: options.output / f"{name}.{ending}" for ending in ("json", "md", "png")}
    for target in filter(None, (*targets.values(), options.trace)):  # before the timing, so that none is lost
        require_writable(target)

    machine = describe_machine(device)
    if options.training:
        settings, table, draw = time_training(options, device), training_table, draw_training
    else:
        settings, table, draw = time_latency(options, device), latency_table, draw_latency
    result = {"machine": machine, "options": vars(options), "settings": settings}
    targets["json"].write_text(json.dumps(result, indent=2, default=str) + "\n")
    targets["md"].write_text(table(result))
    draw(result, targets["png"])
    print(f"\n{table(result)}\nwritten: {options.output}/: {', '.join(target.name for target in targets.values())}")
    if options.trace:
        print(f"written: {options.trace}, for chrome://tracing or ui.perfetto.dev")


def choose_device(options: Namespace) -> torch.device:
    """Return the device given by ``--device``, or the default device.

    The default is the GPU if training is timed and a GPU is available, otherwise the CPU.

    Raises:
        InputError: the device is neither cpu nor cuda, or the device is not available.
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
    """Fill in the default values that depend on other options, and check all values. Changes ``options`` in place.

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
        given = value if options[name] is None else options[name]
        options[name] = given if isinstance(given, str) else list(dict.fromkeys(given))
    for name, given, known in (
        ("forms", options.forms, TRAINABLE_FORMS if training else FORMS),
        ("layouts", options.layouts, LAYOUTS),
        ("precision", [options.precision], PRECISIONS),
    ):
        for value in given:
            if value not in known:
                raise InputError(f"--{name} {value}: {nearest(value, known)}")
    options.forms = [form for form in FORMS if form in options.forms]
    least = {"threads": 1, "batch_sizes": 1, "image_size": 32, "rounds": 1, "warmup": 0, "repeat": 1}
    for name, lowest in least.items():
        for value in options[name] if isinstance(options[name], list) else [options[name]]:
            if value < lowest:
                raise InputError(f"--{name} is {value}: give at least {lowest}")
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
        List of dictionaries, one for each number of threads and batch size. The keys are ``threads``, ``batch_size``,
        ``baseline`` (the label of the baseline) and ``rows``. ``rows`` is a list with one dictionary for each
        candidate. Its keys are those of :func:`row`, ``madds`` (multiply-adds for one image) and ``speedup``. The
        speed-up is the time of the model in eager form divided by the candidate's time. The speed-up is None if the
        eager form is not timed.

    Raises:
        InputError: a candidate is unknown, cannot be built or cannot be run.
        FileNotFoundError: a network of ``--peers`` does not exist.
    """
    settings = []
    with tempfile.TemporaryDirectory() as scratch:
        candidates = build_candidates(options, device, Path(scratch))
        peers = [candidate.label for candidate in candidates if candidate.is_peer]
        baseline = choose_baseline(options.baseline, [candidate.label for candidate in candidates], peers)
        for threads, batch in itertools.product(options.threads, options.batch_sizes):
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
                own, eager = seconds[candidate.label], seconds.get(f"{candidate.model}:eager")
                speedup = None if eager is None else quartiles(paired(eager, own))[1]
                figures = row(candidate, own, seconds[baseline], batch)
                rows.append(figures | {"madds": candidate.madds, "speedup": speedup})
            settings.append({"threads": threads, "batch_size": batch, "baseline": baseline, "rows": rows})
    return settings


def build_candidates(options: Namespace, device: torch.device, scratch: Path) -> list[Candidate]:
    """Return a list of all candidates for inference.

    The list has this project's models in each form and the networks of ``--peers``. With the option ``--earlier``, it
    also has the classifiers of an earlier version of this project, in eager form.

    Raises:
        InputError: a model is unknown or cannot be built.
        FileNotFoundError: a network of ``--peers`` does not exist.
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
            graph = OnnxGraph(peer)
            theirs.append(Candidate(f"{peer.stem}.onnx", "onnx", graph.madds(size), True, graph.prepare))
        else:
            theirs += model_candidates(peer, options.forms, size, device, scratch)
    ours: list[Candidate] = []
    with progress("building", len(options.models)) as built:
        for name in options.models:
            ours += model_candidates(name, options.forms, size, device, scratch)
            if options.earlier and name in mobile_former.list_models():
                network = create_earlier(options.earlier, name).to(device).eval()
                ours.append(Candidate(f"earlier/{name}", "eager", ours[-1].madds, False, prepare_module(network)))
            built()
    return [*ours, *theirs]


def time_training(options: Namespace, device: torch.device) -> list[dict]:
    """Time training steps for each batch size.

    Returns:
        List of dictionaries, one for each batch size. The keys are ``threads``, ``batch_size``, ``baseline`` (the label
        of the baseline), ``rows`` and ``trace``. ``rows`` is a list with one dictionary for each candidate. Its keys
        are those of :func:`row`, ``layout`` (the memory layout), ``memory`` (peak in bytes, None on a CPU) and
        ``saved`` (bytes kept for the backward pass). ``trace`` is None if no step is traced. Otherwise it is the
        dictionary from :func:`trace_step`, with the ``label`` of the traced candidate.

    Raises:
        InputError: a candidate is unknown, cannot be built or does not fit into memory.
    """
    creators = trainable(options)
    labels = [":".join(key) for key in creators]
    baseline = choose_baseline(options.baseline, labels, [label for label in labels if is_baseline(label)])
    torch.set_num_threads(options.threads[0])
    settings = []
    for batch in options.batch_sizes:
        images = fixed_images(batch, options.image_size, device)
        classes = torch.arange(batch, device=device) % CLASSES["classifier"]
        with compiling():
            candidates: list[TrainedModel] = []
            with progress("building", len(creators)) as built:
                for key, create in creators.items():
                    candidates.append(train_model(*key, create, options.precision, images, classes))
                    built()
            runs = {candidate.label: candidate.step for candidate in candidates}
            seconds = time_rounds(runs, options, device, f"training, batch {batch}")
            traced = None
            if options.trace and batch == options.batch_sizes[0]:
                traced = {"label": candidates[0].label} | trace_step(candidates[0].step, device, options.trace)
        rows = []
        for candidate in candidates:
            figures = row(candidate, seconds[candidate.label], seconds[baseline], batch)
            memory = {"memory": candidate.memory, "saved": candidate.saved}
            rows.append(figures | {"layout": candidate.layout} | memory)
        settings.append(
            {"threads": options.threads[0], "batch_size": batch, "baseline": baseline, "rows": rows, "trace": traced}
        )
    return settings


def trainable(options: Namespace) -> dict[tuple[str, str, str], Callable[[], torch.nn.Module]]:
    """Check the names of the models to train, and return a dictionary of functions that build them.

    Returns:
        Dictionary from a tuple (name of the model, form, memory layout) to a function that builds the model.

    Raises:
        InputError: a name is unknown, or a network of ``--peers`` cannot be trained.
    """
    for name in options.models:
        if name not in (known := [*mobile_former.list_models(), *detection.list_detectors()]):
            raise InputError(f"--models: no model is named {name!r}: {nearest(name, known)}")
    size = tuple(options.image_size)
    for peer in find_peers(options.peers):
        if isinstance(peer, Path):
            raise InputError(f"--peers {peer}: an ONNX file cannot be trained: give timm/NAME or transformers/NAME")
        create_network(peer, size)  # raises for an unknown name
    creators = {}
    for name in (*options.models, *options.peers):
        for form, layout in itertools.product(options.forms, options.layouts):
            creators[name, form, layout] = partial(create_network, name, size)
        # Eager only: the compiler would look up the earlier version's functions in the current package.
        if options.earlier and name in mobile_former.list_models():
            for layout in options.layouts:
                creators[f"earlier/{name}", "eager", layout] = partial(create_earlier, options.earlier, name)
    return creators


def row(candidate: Candidate | TrainedModel, seconds: Sequence[float], baseline: Sequence[float], batch: int) -> dict:
    """Compute the results of a candidate from its measured times.

    Args:
        candidate: the candidate.
        seconds: times of the candidate in seconds, one for each round.
        baseline: times of the baseline in seconds, one for each of the same rounds.
        batch: batch size.

    Returns:
        Dictionary with the candidate's ``label``, ``model``, ``form`` and ``is_peer``, and with these keys: ``ms`` is
        the median time in milliseconds, and ``ms_quartiles`` are the lower and the upper quartile. ``images_per_s`` is
        the throughput. ``ratio`` is the candidate's time divided by the baseline's time in the same round, as a median
        over the rounds, and ``ratio_quartiles`` are the quartiles. ``seconds`` are the times as given.
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


def choose_baseline(given: str | None, labels: Sequence[str], peers: Sequence[str]) -> str:
    """Return the label of the baseline. The times of all candidates are divided by the time of the baseline.

    Args:
        given: value of ``--baseline``. None selects the first peer, or the first candidate if there are no peers.
        labels: labels of all candidates.
        peers: labels of the peers, the candidates that come from other libraries or ONNX files.

    Raises:
        InputError: no candidate has the given label.
    """
    if given is not None and given not in labels:
        raise InputError(f"--baseline {given} is not timed: {nearest(given, labels)}")
    return given or (*peers, *labels)[0]


def fixed_images(batch: int, image_size: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return random images ``(batch, 3, H, W)``. They are the same in every call with these arguments."""
    return torch.randn(batch, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)


def time_rounds(
    runs: dict[str, Callable[[], object]], options: Namespace, device: torch.device, title: str
) -> dict[str, list[float]]:
    """Time all candidates in interleaved rounds.

    Args:
        runs: dictionary from a candidate's label to a function that runs the candidate once.
        options: options of the command line.
        device: device of the candidates.
        title: text beside the progress bar.

    Returns:
        Dictionary from a candidate's label to its seconds in each round. The warm-up rounds are left out.
    """
    counts = {name: options[name] for name in ("rounds", "warmup", "repeat")}
    with progress(title, options.warmup + options.rounds) as advance:
        return interleave(runs, **counts, clock=partial(now, device), after_round=advance)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Let ``torch.compile`` create separate kernels for each model that is compiled in the ``with`` block.

    If ``torch.compile`` would run a model uncompiled because of its recompile limit, an error is raised instead.
    """
    torch.compiler.reset()
    # The limit counts all models that share a forward function.
    with torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True):
        yield


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar of ``total`` steps, and yield a function that advances the bar by one step.

    If the output is not a terminal, only the title is printed.

    The bar has no refresh thread, because a thread would disturb the timing.
    """
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        print(f"{title} …", flush=True)
    with Progress(console=terminal, auto_refresh=False, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.update(task, advance=1, refresh=True)


if __name__ == "__main__":
    run_command(main)
