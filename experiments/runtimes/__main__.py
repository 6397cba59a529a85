"""Run exported classifiers in several runtimes on the same images, and compare outputs and times.

    python -m experiments.runtimes                    # 26M, in all runtimes that are installed
    python -m experiments.runtimes --models mobile_former_26m mobile_former_294m --image_size 224 \\
        --baseline mobilenetv3_large_100.onnx         # any network in an ONNX file with images of this size

Each model has random weights. It is exported, and run on embedded digits with one thread. The columns are the file
size, the largest difference of the logits from PyTorch's relative to their scale, the fraction of images with the same
class, the milliseconds per image, and the ratio to the time of the baseline in the same runtime. All runtimes and
models take turns in one process; times are medians. For runtimes that do not read ONNX files, the baseline must be a
model of timm, such as timm/mobilenetv3_large_100.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

import mobile_former
from classification.baselines import create_baseline
from experiments.interleaved import interleave, paired
from experiments.runtimes.digits import digit_images, spread_classifier
from experiments.runtimes.runtimes import RUNTIMES, Run, size, write_file
from experiments.tables import as_table
from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.export.onnx_file import relative_difference


def main() -> None:
    """Parse the command line, export and run the models, and print a table for each."""
    options = parse()
    torch.set_num_threads(1)
    names = options.runtimes or [name for name in RUNTIMES if importlib.util.find_spec(RUNTIMES[name].package)]
    images = digit_images("val", options.image_size)[: options.images]
    rows, runs = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            print(f"{model}: exporting …", file=sys.stderr, flush=True)
            module = spread_classifier(model)
            with torch.no_grad():
                expected = np.concatenate([module(image[None]).numpy() for image in images])
            for name, path in files(mobile_former.deploy(module), names, images[:1], Path(folder) / model).items():
                run = RUNTIMES[name].open(path)
                found = np.concatenate([run(image[None].numpy()) for image in images])
                runs[f"{model} {name}"] = run
                row = {"model": model, "runtime": name, "MB": f"{size(path) / 1e6:.1f}"}
                row["difference"] = f"{relative_difference(found, expected):.1e}"
                row["same class"] = f"{(found.argmax(1) == expected.argmax(1)).mean():.3f}"
                rows.append(row)
        if options.baseline:
            for name, run in baseline_runs(options.baseline, names, images[:1], Path(folder) / "baseline").items():
                runs[f"baseline {name}"] = run
        image = images[:1].numpy()
        seconds = interleave(
            {label: partial(run, image) for label, run in runs.items()},
            rounds=options.rounds, warmup=2, clock=time.perf_counter,
        )  # fmt: skip
    for row in rows:
        own = seconds[f"{row['model']} {row['runtime']}"]
        row["ms"] = f"{1000 * statistics.median(own):.2f}"
        if of_baseline := seconds.get(f"baseline {row['runtime']}"):
            row["ratio"] = f"{statistics.median(paired(own, of_baseline)):.2f}"
    print(as_table(rows), end="")


def files(module: torch.nn.Module, names: list[str], image: torch.Tensor, stem: Path) -> dict[str, Path]:
    """Write the files of a classifier for some runtimes.

    Args:
        module: classifier in evaluation mode.
        names: names of the runtimes.
        image: example of its input, ``(1, 3, S, S)``.
        stem: path of the files without suffix.

    Returns:
        Dictionary from the name of a runtime to the path of its file. Runtimes may have the same file.
    """
    paths = {name: stem.with_name(stem.name + RUNTIMES[name].suffix) for name in names}
    for path in dict.fromkeys(paths.values()):
        write_file(module, image, path)
    return paths


def baseline_runs(baseline: str, names: list[str], image: torch.Tensor, stem: Path) -> dict[str, Run]:
    """Open the network of ``--baseline`` in some runtimes. An ONNX file is left out where a runtime cannot read it."""
    if not baseline.endswith(".onnx"):
        module = create_baseline(baseline, 1000, image_size=tuple(image.shape[2:])).eval()
        return {name: RUNTIMES[name].open(path) for name, path in files(module, names, image, stem).items()}
    if not Path(baseline).is_file():
        raise FileNotFoundError(f"--baseline: the file {baseline} does not exist")
    return {name: RUNTIMES[name].open(Path(baseline)) for name in names if RUNTIMES[name].suffix == ".onnx"}


def parse() -> argparse.Namespace:
    """Parse the command line.

    Raises:
        InputError: a name is unknown.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.runtimes", description=__doc__.partition("\n")[0])
    known = mobile_former.list_models()
    parser.add_argument("--models", nargs="+", default=["mobile_former_26m"], help="default: mobile_former_26m")
    parser.add_argument("--runtimes", nargs="+", default=None, help=f"of {', '.join(RUNTIMES)}; default: all installed")
    parser.add_argument("--baseline", default=None, help="an ONNX file, or a model of timm, to divide the times by")
    parser.add_argument("--image_size", type=int, default=32, help="side in pixels (default: 32)")
    parser.add_argument("--images", type=int, default=100, help="number of digits (default: 100)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: 15)")
    options = parser.parse_args()
    for option, given, names in (("models", options.models, known), ("runtimes", options.runtimes or [], RUNTIMES)):
        if unknown := [name for name in given if name not in names]:
            raise InputError(f"--{option} {unknown[0]}: give some of {', '.join(names)}")
    return options


if __name__ == "__main__":
    run_command(main)
