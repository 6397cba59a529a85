"""Whether E2E-MF learns a handful of real images by heart: what a detector must at least be able to do.

    python -m experiments.overfit --root DIR             # eight images of BCCD, or of any COCO folder

Trains on the first images of the training split, without augmentation, and scores them on the same images: the AP to
expect is above 0.9. The runs' folder is runs/detection/overfit.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from detection.data.coco_dataset import find_split

SIDE = 320  # pixels of the shorter side


def main() -> None:
    """Choose the images and train."""
    parser = argparse.ArgumentParser(prog="python -m experiments.overfit", description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="a COCO folder, as of detection.fit")
    parser.add_argument("--images", type=int, default=8, help="how many images to learn (default: 8)")
    parser.add_argument("--epochs", type=int, default=300, help="epochs, of two steps each by default (default: 300)")
    options = parser.parse_args()

    annotations, images = find_split(options.root, "train")
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder) / "chosen.json"
        chosen.write_text(json.dumps(first_images(json.loads(annotations.read_text()), options.images)))
        config = Path(folder) / "plain.yaml"
        config.write_text(PLAIN)
        # The same images to learn and to be asked for.
        paths = [
            f"--data.{what}.{split}={path}"
            for what, path in (("annotations", chosen), ("images", images))
            for split in ("train", "val")
        ]
        command = ["detection.fit", "--name", "overfit", "--config", "bccd.yaml", "--config", str(config), *paths]
        command += ["--trainer.max_epochs", str(options.epochs)]
        subprocess.run([sys.executable, "-m", *command], check=True)


def first_images(content: dict, count: int) -> dict:
    """COCO's content, less all but the first images."""
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
