"""Run exported classifiers in several runtimes on the same images, and compare outputs and times.

    python -m experiments.runtimes                    # 26M, in all runtimes that are installed
    python -m experiments.runtimes --models mobile_former_26m mobile_former_294m --image_size 224 \\
        --baseline mobilenetv3_large_100.onnx         # any network in an ONNX file with images of this size
    python -m experiments.runtimes --ckpt_path runs/classification/mobile_former_26m-images/checkpoints/best.ckpt

Each model of ``--models`` has random weights, and is run on scikit-learn's handwritten digits. A checkpoint is run on
the validation images of its data set. The table has a row for each model in each runtime, with these columns:

- ``MB``: size of the exported file
- ``difference``: largest difference between the logits and PyTorch's logits, relative to the scale of the logits
- ``same class``: fraction of the images with the same predicted class as in PyTorch
- ``top1`` and ``PyTorch``: accuracy in the runtime and in PyTorch, only for checkpoints
- ``ms``: milliseconds per image
- ``ratio``: this time divided by the baseline's time in the same runtime, with the quartiles of the ratio

All runtimes and models take turns, with one thread each. Times and ratios are medians. Processor time is
measured, because other processes on the machine change it less. For runtimes that do not read ONNX files, the baseline
must be a model of timm, such as timm/mobilenetv3_large_100.

ONNX Runtime Web runs in Node.js. Install its package in the current folder:

    npm install onnxruntime-web@1.30.0
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

import mobile_former
from classification.baselines import create_baseline
from experiments.interleaved import interleave, paired, quartiles
from experiments.runtimes.classifiers import Classifier, random_classifier, trained_classifier
from experiments.runtimes.runtimes import RUNTIMES, Run, processor_time, size, write_file
from experiments.tables import as_table
from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.export.onnx_file import relative_difference


def main() -> None:
    """Parse the command line, export and run the models, and print the table."""
    options = parse()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    names = options.runtimes or [name for name, runtime in RUNTIMES.items() if runtime.is_installed()]
    if missing := [name for name in RUNTIMES if not (options.runtimes or name in names)]:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
    rows, runs = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for classifier in classifiers(options):
            print(f"{classifier.name}: exporting …", file=sys.stderr, flush=True)
            image = classifier.images[:1].clone()  # a .pt2 file contains its whole storage
            expected = outputs(partial(run_module, classifier.module), classifier)
            stem = Path(folder) / classifier.name
            for name, path in files(mobile_former.deploy(classifier.module), names, image, stem).items():
                run = runs[f"{classifier.name} {name}"] = RUNTIMES[name].open(path)
                row = {"model": classifier.name, "runtime": name, "MB": f"{size(path) / 1e6:.1f}"}
                rows.append(row | compared(outputs(run, classifier), expected, classifier.labels))
        if options.baseline:
            for name, run in baseline_runs(options.baseline, names, image, Path(folder) / "baseline").items():
                runs[f"baseline {name}"] = run
        seconds = interleave(
            {label: partial(run, image.numpy()) for label, run in runs.items()},
            rounds=options.rounds, warmup=2, clock=processor_time, repeat=5,
        )  # fmt: skip
    for row in rows:
        own = seconds[f"{row['model']} {row['runtime']}"]
        row["ms"] = f"{1000 * statistics.median(own):.2f}"
        if of_baseline := seconds.get(f"baseline {row['runtime']}"):
            low, middle, high = quartiles(paired(own, of_baseline))
            row["ratio"] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    print(as_table(rows), end="")


def classifiers(options: argparse.Namespace) -> Iterator[Classifier]:
    """Yield the classifier of ``--ckpt_path``, or otherwise the classifiers of ``--models``."""
    if options.ckpt_path:
        yield trained_classifier(options.ckpt_path, options.images)
    else:
        for name in options.models:
            yield random_classifier(name, options.image_size, options.images)


def run_module(module: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Run a module in PyTorch on one image ``(1, 3, S, S)``. Return the logits ``(1, K)``."""
    with torch.inference_mode():
        return module(torch.from_numpy(images)).numpy()


def outputs(run: Run, classifier: Classifier) -> np.ndarray:
    """Run a classifier on its images, one image at a time. Return the logits ``(N, K)``.

    Args:
        run: function that takes an image ``(1, 3, S, S)`` and returns the logits ``(1, K)``.
        classifier: classifier with the images.
    """
    return np.concatenate([run(image[None].numpy()) for image in classifier.images])


def compared(found: np.ndarray, expected: np.ndarray, labels: np.ndarray | None) -> dict[str, str]:
    """Compare the logits of an exported file with those of PyTorch.

    Args:
        found: logits of the file ``(N, K)``.
        expected: logits of PyTorch ``(N, K)``.
        labels: true label of each image, ``(N,)``. None: no accuracy is computed.

    Returns:
        Dictionary from the name of a column of the table to the text of its cell.
    """
    classes, right = found.argmax(1), expected.argmax(1)
    cells = {"difference": f"{relative_difference(found, expected):.1e}"}
    cells["same class"] = f"{(classes == right).mean():.3f}"
    if labels is not None:
        cells |= {"top1": f"{(classes == labels).mean():.4f}", "PyTorch": f"{(right == labels).mean():.4f}"}
    return cells


def files(module: torch.nn.Module, names: list[str], image: torch.Tensor, stem: Path) -> dict[str, Path]:
    """Export a classifier to the files that some runtimes read.

    Args:
        module: classifier in evaluation mode.
        names: names of the runtimes.
        image: example of the classifier's input, ``(1, 3, S, S)``.
        stem: path of the files without their suffixes.

    Returns:
        Dictionary from the name of a runtime to the path of its file. Several runtimes may read the same file.
    """
    paths = {name: stem.with_name(stem.name + RUNTIMES[name].suffix) for name in names}
    for path in dict.fromkeys(paths.values()):
        write_file(module, image, path)
    return paths


def baseline_runs(baseline: str, names: list[str], image: torch.Tensor, stem: Path) -> dict[str, Run]:
    """Load the network of ``--baseline`` in several runtimes.

    Args:
        baseline: path of an ONNX file, or the name of a network of another library, which is exported first.
        names: names of the runtimes. Those that cannot read ONNX files are skipped if ``baseline`` is such a file.
        image: input of the network, ``(1, 3, H, W)``.
        stem: path of the exported files without their suffixes.

    Returns:
        A dictionary from the name of a runtime to a function that runs the network in it.

    Raises:
        FileNotFoundError: the ONNX file does not exist.
    """
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
    parser.add_argument("--ckpt_path", default=None, help="checkpoint of classification.fit to run instead of --models")
    parser.add_argument("--runtimes", nargs="+", default=None, help=f"of {', '.join(RUNTIMES)}; default: all installed")
    parser.add_argument("--baseline", default=None, help="an ONNX file, or a model of timm, to divide the times by")
    parser.add_argument("--image_size", type=int, default=32, help="side for --models in pixels (default: 32)")
    parser.add_argument("--images", type=int, default=100, help="number of images (default: 100)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: 15)")
    options = parser.parse_args()
    for option, given, names in (("models", options.models, known), ("runtimes", options.runtimes or [], RUNTIMES)):
        if unknown := [name for name in given if name not in names]:
            raise InputError(f"--{option} {unknown[0]}: give some of {', '.join(names)}")
    return options


if __name__ == "__main__":
    run_command(main)
