"""``make demo``: train, validate and use a classifier and a detector on built-in data, without downloads.

The demo predicts images of the validation split. At the end, it lists the checkpoints and pictures that it has written.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path("runs") / "demo"
IMAGES = 12  # validation images to predict


def main() -> None:
    """Run the commands of the demo in order, and print each command."""
    classifier, detector = new_run("classification"), new_run("detection")
    digits, scenes = FOLDER / "digits", FOLDER / "scenes"
    run("classification.fit", "--name", classifier.name)
    run("classification.validate", "--ckpt_path", best(classifier))
    run("classification.digits", digits, "--limit", IMAGES)
    run(
        "classification.predict", digits / "val", "--ckpt_path", best(classifier), "--sheet", classifier / "sheet.png"
    )  # fmt: skip
    run("detection.fit", "--name", detector.name)
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


def new_run(task: str) -> Path:
    """Return the folder of a new run: the first of ``demo``, ``demo-2``, … that does not exist."""
    number = 1
    while (folder := Path("runs") / task / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder


def best(folder: Path) -> Path:
    """Return the path of the best checkpoint in the folder of a run."""
    return folder / "checkpoints" / "best.ckpt"


def run(module: str, *arguments: object) -> None:
    """Print and run ``python -m module arguments``. Raise CalledProcessError if the command fails."""
    words = [module, *map(str, arguments)]
    print(f"\n$ python -m {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", *words], check=True)


if __name__ == "__main__":
    main()
