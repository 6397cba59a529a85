"""``make demo``: train on the embedded digits, validate, predict held-out images, and say where everything lies."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path("runs") / "demo"


def main() -> None:
    """Run the commands that a user would type, showing each."""
    digits = FOLDER / "digits"
    name = "demo"
    number = 1
    while (Path("runs") / "classification" / name).exists():
        number += 1
        name = f"demo-{number}"
    run = Path("runs") / "classification" / name
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    steps = [
        ("classification.fit", "--name", name),
        ("classification.validate", "--ckpt_path", checkpoint),
        ("classification.digits", str(digits), "--limit", "12"),
        ("classification.predict", str(digits / "val"), "--ckpt_path", checkpoint, "--sheet", str(run / "sheet.png")),
    ]
    for step in steps:
        print(f"\n$ python -m {' '.join(step)}", flush=True)
        subprocess.run([sys.executable, "-m", *step], check=True)
    print(
        f"\ncheckpoint  {checkpoint}"
        f"\ncurves      {run / 'curves.png'}"
        f"\npictures    {run / 'augmented.png'}, {run / 'predictions.png'}, {run / 'confusion_matrix.png'}, "
        f"{run / 'sheet.png'}"
    )


if __name__ == "__main__":
    main()
