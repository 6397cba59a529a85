#!/usr/bin/env bash
# 2026-11-29, supervision 0.31.2, datumaro 1.13.12.
# Guess: boxes that one library writes in Pascal VOC's format come back the same from the other.
# What happens: supervision takes the corners of every file as counted from 1, as in the original data set, and subtracts
#   1 from the left and the top. datumaro writes the corners counted from 0. Every box grows by a pixel on these two sides,
#   and a box at the edge of the image begins at -1. Neither library says so, and the files do not say how they count.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q supervision==0.31.2 datumaro==1.13.12
cat > "$folder/boxes.py" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import supervision
from datumaro.components.annotation import AnnotationType, Bbox, LabelCategories
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

folder = Path(sys.argv[1])
written = np.array([[0, 0, 20, 10], [10, 20, 40, 60]])  # left, top, right, bottom
boxes = [Bbox(left, top, right - left, bottom - top, label=0) for left, top, right, bottom in written.tolist()]
item = DatasetItem(
    id="a", subset="train", media=Image.from_numpy(data=np.zeros((80, 100, 3), np.uint8)), annotations=boxes
)
categories = {AnnotationType.label: LabelCategories.from_iterable(["cell"])}
Dataset.from_iterable([item], categories=categories).export(str(folder), "voc_detection", save_media=True)

read = supervision.DetectionDataset.from_pascal_voc(
    images_directory_path=str(folder / "JPEGImages"), annotations_directory_path=str(folder / "Annotations")
)
found = np.concatenate([detections.xyxy for detections in read.annotations.values()])
found = found[np.lexsort(found.T[::-1])]
print("supervision", version("supervision"), "datumaro", version("datumaro"))
print("written:", written.tolist())
print("read:   ", found.tolist())
sys.exit(0 if np.array_equal(found, written - [1, 1, 0, 0]) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/boxes.py" "$folder/voc"
