"""A stand-in training: it has the options of ``fit``, writes its files, resumes, and lists the trainings it ran.

A training on a list is a line ``NAME from EPOCH`` when it starts, and ``NAME finished`` when it ends. Every epoch takes
``STAND_IN_SECONDS`` seconds (default: 0). The run ``STAND_IN_WAITS`` waits after its second epoch until it is stopped.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

EPOCHS = 4
HEADER = "epoch,step,val/top1\n"


def train() -> None:
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    folder = Path(options["--runs_folder"]) / "classification" / options["--name"]
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    last, table = folder / "checkpoints" / "last.ckpt", folder / "metrics.csv"
    done = int(last.read_text()) if last.is_file() else 0
    _list(f"{options['--name']} from {done}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rate = float(options["--model.learning_rate"])
    if rate < 0:
        sys.exit("error: the learning rate is negative")
    rows = table.read_text().splitlines()[1 : 1 + done] if done else []
    for epoch in range(done, EPOCHS):
        time.sleep(float(os.environ.get("STAND_IN_SECONDS", 0)))
        score = (1 - abs(math.log10(rate) + 3) / 4) * (epoch + 1) / EPOCHS
        rows.append(f"{epoch},{epoch},{score + int(options.get('--seed_everything', 0)) / 100:.6f}")
        table.write_text(HEADER + "\n".join(rows) + "\n")
        last.with_suffix(".part").write_text(str(epoch + 1))
        last.with_suffix(".part").replace(last)
        if epoch == 1 and options["--name"] == os.environ.get("STAND_IN_WAITS"):
            time.sleep(60)  # until SIGTERM
    (folder / "metrics.json").write_text(json.dumps({"seconds": 1.0}))
    _list(f"{options['--name']} finished")


def _list(line: str) -> None:
    with open(os.environ["STAND_IN_LIST"], "a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    train()
