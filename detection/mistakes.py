"""The mistakes of a detector: false detections and missed objects."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detection.data.batch import Source
from detection.evaluation import ImageMatch
from detection.pictures import Cell, caption, draw_cells

_DRAWN = 12  # images
_MISSED, _FALSE = 0, 1  # labels, which determine the colours of boxes


def write_mistakes(matches: Sequence[ImageMatch], source: Source, folder: Path) -> list[str]:
    """Write all mistakes to ``mistakes.csv``. If there are any, draw the worst images in ``mistakes.png``.

    Images are ranked by the number of missed objects plus the sum of the scores of all false detections.

    Args:
        matches: matched detections and objects, see :meth:`detection.evaluation.CocoAP.match`.
        source: data set of the images.
        folder: folder of the files.

    Returns:
        A list of the names of the written files.
    """
    indices = {source.image_id(index): index for index in range(len(source))}
    names = dict(zip(source.category_ids, source.class_names, strict=True))
    wrong = sorted((match for match in matches if match.false or match.missed), key=_badness, reverse=True)
    # Paths may contain bytes that are not valid text.
    with (folder / "mistakes.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "mistake", "class", "score", "left", "top", "right", "bottom"])
        for match in wrong:
            path = source.name(indices[match.image_id])
            for row in sorted(match.false, key=lambda row: -row["score"]):
                corners = (round(value, 2) for value in _corners(row))
                writer.writerow([path, "false", names[row["category_id"]], round(row["score"], 6), *corners])
            for row in match.missed:
                corners = (round(value, 2) for value in _corners(row))
                writer.writerow([path, "missed", names[row["category_id"]], "", *corners])
    if not wrong:
        return ["mistakes.csv"]
    cells = [
        Cell(
            source.read(indices[match.image_id]),
            [_corners(row) for row in (*match.missed, *match.false)],
            [_MISSED] * len(match.missed) + [_FALSE] * len(match.false),
            [names[row["category_id"]] for row in match.missed]
            + [caption(names[row["category_id"]], row["score"]) for row in match.false],
        )
        for match in wrong[:_DRAWN]
    ]
    title = f"the worst of {len(wrong)} images with mistakes"
    kinds = {_MISSED: "missed object", _FALSE: "false detection"}
    draw_cells(cells, kinds, folder / "mistakes.png", title=title, legend=True)
    return ["mistakes.csv", "mistakes.png"]


def class_scores(matches: Sequence[ImageMatch], category_ids: Sequence[int]) -> list[dict[str, float | int | None]]:
    """For each class, count the objects, and compute precision, recall and F1 score of the detections.

    Args:
        matches: matched detections and objects. The confidence of a detection is not used.
        category_ids: COCO category ids in the order of the labels.

    Returns:
        A list with one dictionary for each class, with the keys ``objects``, ``precision``, ``recall`` and ``f1``. A
        value is None if it would be 0/0.
    """
    right, false, missed = (
        Counter(row["category_id"] for match in matches for row in getattr(match, kind))
        for kind in ("right", "false", "missed")
    )

    def share(count: float, total: float) -> float | None:
        return round(count / total, 6) if total else None

    return [
        {
            "objects": right[number] + missed[number],
            "precision": share(right[number], right[number] + false[number]),
            "recall": share(right[number], right[number] + missed[number]),
            "f1": share(2 * right[number], 2 * right[number] + false[number] + missed[number]),
        }
        for number in category_ids
    ]


def _badness(match: ImageMatch) -> float:
    return len(match.missed) + sum(row["score"] for row in match.false)


def _corners(row: dict) -> list[float]:
    left, top, width, height = row["bbox"]
    return [left, top, left + width, top + height]
