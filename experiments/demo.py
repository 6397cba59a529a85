"""``make demo``: train, validate and use a classifier and a detector on built-in data, without downloads.

The demo predicts images of the validation split. At the end, it prints the paths of the checkpoints and pictures that
it has written. A demo that was stopped continues when it is started again.
"""

import itertools
import subprocess
import sys
from pathlib import Path

FOLDER = Path("runs") / "demo"
IMAGES = 12  # validation images to predict


def main() -> None:
    """Run the commands of the demo in order, and print each command."""
    name = run_name()
    classifier, detector = (Path("runs") / task / name for task in ("classification", "detection"))
    digits, scenes = FOLDER / "digits", FOLDER / "scenes"
    run("classification.fit", "--name", name, "--ckpt_path", "auto")
    run("classification.validate", "--ckpt_path", best(classifier))
    run("classification.digits", digits, "--limit", IMAGES)
    run(
        "classification.predict", digits / "val", "--ckpt_path", best(classifier), "--sheet", classifier / "sheet.png"
    )  # fmt: skip
    run("detection.fit", "--name", name, "--ckpt_path", "auto")
    run("detection.validate", "--ckpt_path", best(detector))
    run("detection.scenes", scenes, "--limit", IMAGES)
    run(
        "detection.predict", scenes / "images" / "val_*.png", "--ckpt_path", best(detector),
        "--output", detector / "detections.json", "--drawings", detector / "drawings",
    )  # fmt: skip
    for folder in (classifier, detector):
        pictures = sorted(path.name for path in folder.glob("*.png"))
        print(f"\ncheckpoint  {best(folder)}\npictures    {folder}/: {', '.join(pictures)}")
    print(f"            {detector / 'drawings'}/: {IMAGES} scenes with their detections")


def run_name() -> str:
    """Return the name for the runs of the demo: the first of ``demo``, ``demo-2``, … that is not finished.

    A demo is finished if the run folder of its detector contains the drawings of all predicted images.
    """
    names = itertools.chain(["demo"], (f"demo-{number}" for number in itertools.count(2)))
    runs = Path("runs") / "detection"
    return next(name for name in names if len(list((runs / name / "drawings").glob("*"))) < IMAGES)


def best(folder: Path) -> Path:
    """Return the path of the best checkpoint of the run whose folder is ``folder``."""
    return folder / "checkpoints" / "best.ckpt"


def run(module: str, *arguments: object) -> None:
    """Print and run ``python -m module arguments``. If the command fails, exit with its status."""
    words = [module, *map(str, arguments)]
    print(f"\n$ python -m {' '.join(words)}", flush=True)
    with subprocess.Popen([sys.executable, "-m", *words]) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C stops the command too, which first writes a checkpoint
            raise
    if status:
        sys.exit(status)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("the demo was stopped; make demo continues it", file=sys.stderr)
        sys.exit(130)
