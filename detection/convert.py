"""``python -m detection.convert``: convert annotated images of any supported layout to a COCO folder."""

import json
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

from detection.data.coco_dataset import CocoDataset
from detection.data.layouts.find import find_layout
from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.whole_file import write_whole


def main() -> None:
    """Parse the command line, and write ``annotations/instances_<split>.json`` and ``images/<split>/``."""
    parser = Parser(
        prog="python -m detection.convert",
        description="Write annotated images (COCO, YOLO, Pascal VOC, LabelMe) as a COCO folder. Training does not need "
        "it: detection.fit reads these layouts.",
    )
    parser.add_argument("folder", type=Path, help="folder of images and annotations, as for --data.root")
    parser.add_argument("output", type=Path, help="folder to write, which must not exist or be empty")
    options = parser.parse_args()
    output = options.output
    if output.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(f"the output {output} is inside {options.folder}: give a folder outside it")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"the output {output} exists already: give a new folder")
    layout = find_layout(options.folder)
    data = {split: CocoDataset.open(annotations) for split, annotations in layout.splits.items()}
    print(f"layout {layout.name}" + (f": {note}" if (note := layout.note()) else ""))
    for split, images in data.items():
        content = images.ground_truth()
        _copy(images, content["images"], output / "images", split)
        objects = f" with {len(content['annotations'])} objects"
        name = f"instances_{split}.json"
        if not images.annotated:  # COCO's name for such files
            del content["annotations"]
            name, objects = f"image_info_{split}.json", ", without annotations"
        write_whole(output / "annotations" / name, json.dumps(content).encode())
        print(f"{split}: {len(images)} images{objects}")
    print(f"written: {output}/: annotations/, images/")


def _copy(images: CocoDataset, records: list[dict], folder: Path, split: str) -> None:
    """Copy the images of a split to ``folder``, and change the file names in ``records`` to those of the copies.

    ``records`` is the list ``images`` of the split's dictionary in COCO format.
    """
    console = Console(stderr=True)
    shown = track(range(len(images)), f"copying {split}", console=console, disable=not sys.stderr.isatty())
    taken: set[str] = set()
    for index in shown:
        name = records[index]["file_name"]
        # Of a path outside the data folder, only the file name is kept.
        outside = os.path.isabs(name) or ".." in Path(name).parts
        name = f"{split}/{Path(name).name if outside else name}"
        if name in taken:
            name = f"{split}/{index}-{Path(name).name}"
        taken.add(name)
        records[index]["file_name"] = name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images.name(index), folder / name)


if __name__ == "__main__":
    run_command(main)
