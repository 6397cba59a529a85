"""Overfit the detector E2E-MF on a few real images. A working detector reaches an AP above 0.9.

    python -m experiments.overfit --root DIR             # eight images of BCCD, or of any COCO folder

The detector is trained on the first images of the training split, without augmentation, and scored on the same images.
The run is written to runs/detection/overfit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from detection.data.layouts.find import find_layout

SIDE = 320  # pixels of the shorter side


def main() -> None:
    """Select the first training images, and train the detector on them."""
    parser = argparse.ArgumentParser(prog="python -m experiments.overfit", description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="a COCO folder, as for detection.fit")
    parser.add_argument("--images", type=int, default=8, help="number of images (default: 8)")
    parser.add_argument("--epochs", type=int, default=300, help="epochs (default: 300)")
    options = parser.parse_args()

    content, images = find_layout(options.root).splits["train"].read()
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / "chosen.json"
        chosen.write_text(json.dumps(first_images(content, options.images)))
        config = Path(folder) / "plain.yaml"
        config.write_text(PLAIN)
        # Training and validation use the same images.
        paths = [
            f"--data.{what}.{split}={path}"
            for what, path in (("annotations", chosen), ("images", images))
            for split in ("train", "val")
        ]
        command = ["detection.fit", "--name", "overfit", "--config", "bccd.yaml", "--config", str(config), *paths]
        command += ["--trainer.max_epochs", str(options.epochs)]
        subprocess.run([sys.executable, "-m", *command], check=True)


def first_images(content: dict, count: int) -> dict:
    """Return a dictionary in COCO format that has only the first ``count`` images of ``content`` and their objects."""
    kept = content["images"][:count]
    ids = {image["id"] for image in kept}
    annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
    return content | {"images": kept, "annotations": annotations}


PLAIN = f"""
data:
  batch_size: 4
  short_side: {SIDE}
  longest: {SIDE * 2}
  train_transforms:
    - class_path: detection.transforms.ResizeShortSide
      init_args: {{sizes: [{SIDE}], longest: {SIDE * 2}}}
  group_shapes: false
model:
  warmup_epochs: 10
trainer:
  check_val_every_n_epoch: 50
"""


if __name__ == "__main__":
    main()
