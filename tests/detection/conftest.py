"""Data and computations shared by the tests of detection."""

import json
import logging
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

# The ids are unordered and have gaps. Labels are 0 for "bar" and 1 for "disc".
CATEGORIES = [{"id": 40, "name": "disc"}, {"id": 7, "name": "bar"}]
SIZES = [(64, 96), (96, 64), (72, 80)]  # height, width


def write_shapes(root: Path, categories: list[dict] = CATEGORIES, **counts: int) -> Path:
    """Write a COCO folder of bright discs and bars on dark noise, in images of three shapes that are not square.

    Args:
        root: the folder to write.
        categories: the categories of discs and of bars.
        **counts: number of images of each split.
    """
    generator = np.random.default_rng(0)
    for folder in ("annotations", "images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        images, annotations = [], []
        for index in range(count):
            height, width = SIZES[index % len(SIZES)]
            image = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for number, (kind, (left, right)) in enumerate((("disc", (0, width // 2)), ("bar", (width // 2, width)))):
                across = int(generator.integers(16, 28))
                down = across if kind == "disc" else across // 2
                x = int(generator.integers(left, right - across))
                y = int(generator.integers(0, height - down))
                if kind == "disc":
                    cv2.ellipse(image, ((x + across / 2, y + down / 2), (across, down), 0), (40, 200, 240), -1)
                else:
                    image[y : y + down, x : x + across] = (230, 90, 60)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 10 * index + 5,
                        "category_id": categories[number]["id"],
                        "bbox": [x, y, across, down],
                        "area": across * down,
                        "iscrowd": 0,
                    }
                )
            name = f"{split}_{index}.png"
            cv2.imwrite(str(root / "images" / name), image)
            images.append({"id": 10 * index + 5, "file_name": name, "height": height, "width": width})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A COCO folder of the classes ``bar`` and ``disc``: six training, three validation, two test images."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=6, val=3, test=2)


class Result(NamedTuple):
    """Exit status and output of a command. The errors include all warnings."""

    status: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, capfd, caplog, tmp_path):
    """Run a command in this process, in a folder of its own."""

    def run_command(module, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        capfd.readouterr()
        caplog.clear()
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        output = capfd.readouterr()
        told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        return Result(end.value.code, output.out, "\n".join([output.err, *told]).strip())

    return run_command


def corners_of(box: list[float]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a box cxcywh."""
    cx, cy, w, h = box
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def overlap_of(first: list[float], second: list[float]) -> tuple[float, float]:
    """Intersection over union and generalised intersection over union of two boxes cxcywh, in plain numbers."""
    a, b = corners_of(first), corners_of(second)
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = first[2] * first[3] + second[2] * second[3] - inner
    outer = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inner / union, inner / union - (outer - union) / outer
