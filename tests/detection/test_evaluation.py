import contextlib
import io
import json
import multiprocessing

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.evaluation import NUMBERS, CocoAP
from detection.mistakes import class_scores

CATEGORY_IDS = [70, 3, 25, 90]  # of labels 0 to 3, in an order of their own
NAMES = {70: "cat", 3: "dog", 25: "cow", 90: "unicorn"}


def truth(annotations, images=8):
    """annotations: (image, category id, bbox, crowd)."""
    return {
        "images": [{"id": 11 * i + 5, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(images)],
        "categories": [{"id": category_id, "name": name} for category_id, name in NAMES.items()],
        "annotations": [
            {
                "id": number + 1,
                "image_id": 11 * image + 5,
                "category_id": category_id,
                "bbox": [float(value) for value in box],
                "area": float(box[2] * box[3]),
                "iscrowd": crowd,
            }
            for number, (image, category_id, box, crowd) in enumerate(annotations)
        ],
    }


def random_data(images=40, seed=0):
    """Objects of three of four classes, some crowds; detections near them and elsewhere, some with equal scores."""
    generator = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(images):
        count = generator.integers(0, 7)
        corners = generator.uniform(0, 300, (count, 2))
        sides = generator.choice([12, 50, 150], (count, 1)) * generator.uniform(0.7, 1.4, (count, 2))
        labels = generator.integers(0, 3, count)
        for corner, side, label in zip(corners, sides, labels, strict=True):
            box = [*corner.round(2), *side.round(2)]
            annotations.append((image, CATEGORY_IDS[label], box, int(generator.random() < 0.1)))
        near = generator.integers(0, max(1, count), 8 * (count > 0))
        boxes = np.concatenate([corners, corners + sides], 1)[near] + generator.normal(0, 4, (len(near), 4))
        anywhere = generator.uniform(0, 300, (generator.integers(0, 130), 4))
        anywhere[:, 2:] = anywhere[:, :2] + generator.uniform(5, 200, (len(anywhere), 2))
        scores = np.concatenate([generator.uniform(0.2, 1, len(boxes)), generator.uniform(0, 0.5, len(anywhere))])
        detections.append(
            {
                "boxes": torch.tensor(np.concatenate([boxes, anywhere]).reshape(-1, 4), dtype=torch.float32),
                "scores": torch.tensor(scores.round(2), dtype=torch.float32),
                "labels": torch.tensor(np.concatenate([labels[near], generator.integers(0, 4, len(anywhere))])).long(),
            }
        )
    return truth(annotations, images), detections


def ids(ground_truth):
    return [image["id"] for image in ground_truth["images"]]


def evaluated(ground_truth, detections, image_ids=None):
    metric = CocoAP(ground_truth, CATEGORY_IDS)
    image_ids = ids(ground_truth)[: len(detections)] if image_ids is None else image_ids
    for first in range(0, len(detections), 3):
        metric.update(detections[first : first + 3], image_ids[first : first + 3])
    return metric


def reference(ground_truth, results, tmp_path):
    """pycocotools on files."""
    (tmp_path / "truth.json").write_text(json.dumps(ground_truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def found(*rows):
    """Detections of an image from (label, score, xyxy)."""
    return {
        "boxes": torch.tensor([list(map(float, box)) for *_, box in rows]).reshape(-1, 4),
        "scores": torch.tensor([float(score) for _, score, _ in rows]),
        "labels": torch.tensor([label for label, *_ in rows], dtype=torch.long),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_the_numbers_are_those_of_pycocotools_on_the_saved_results_to_the_last_digit(tmp_path, seed):
    ground_truth, detections = random_data(seed=seed)
    metric = evaluated(ground_truth, detections)
    numbers = metric.compute()
    expected = reference(ground_truth, metric.results(), tmp_path)
    assert [numbers[name] for name in NUMBERS] == expected.stats.tolist()
    assert 0.1 < numbers["AP"] < 0.9
    assert len(NUMBERS) == 12
    assert all(type(numbers[name]) is float for name in NUMBERS)


def test_the_ap_of_each_class_is_that_of_pycocotools_on_this_class_alone(tmp_path):
    ground_truth, detections = random_data()
    metric = evaluated(ground_truth, detections)
    per_class = metric.compute()["per_class"]
    assert list(per_class) == ["cat", "dog", "cow", "unicorn"]
    for category_id, (name, value) in zip(CATEGORY_IDS, per_class.items(), strict=True):
        assert NAMES[category_id] == name
        alone = ground_truth | {
            "annotations": [row for row in ground_truth["annotations"] if row["category_id"] == category_id],
            "categories": [{"id": category_id, "name": name}],
        }
        assert value == reference(alone, metric.results(), tmp_path).stats[0]
    assert per_class["unicorn"] == -1  # there is none
    assert metric.compute()["AP"] == pytest.approx(np.mean([value for value in per_class.values() if value > -1]))


def test_results_are_rows_of_cocos_format_in_category_ids_and_left_top_width_height():
    metric = evaluated(truth([]), [found(), found((1, 0.5, (10, 20, 40, 80)), (3, 0.25, (0, 0, 1, 2)))])
    assert metric.results() == [
        {"image_id": 16, "category_id": 3, "bbox": [10.0, 20.0, 30.0, 60.0], "score": 0.5},
        {"image_id": 16, "category_id": 90, "bbox": [0.0, 0.0, 1.0, 2.0], "score": 0.25},
    ]


def test_ap_by_hand():
    """Two objects; best first: right, wrong, right. Precision is 1 up to recall ½ and ⅔ beyond."""
    box, other, far = (10, 10, 50, 50), (100, 100, 50, 50), (400, 300, 450, 350)
    ground_truth = truth([(0, 70, box, 0), (0, 70, other, 0)])
    detections = [found((0, 0.9, (10, 10, 60, 60)), (0, 0.8, far), (0, 0.7, (100, 100, 150, 150)))]
    numbers = evaluated(ground_truth, detections).compute()
    expected = (51 * 1 + 50 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP75", "AP_medium"):
        assert numbers[name] == pytest.approx(expected, abs=1e-12)
    assert numbers["AR_1"] == 0.5  # the best detection is right, the next one is not looked at
    assert numbers["AR"] == 1
    assert numbers["AP_small"] == numbers["AP_large"] == -1


def test_a_box_that_overlaps_by_three_quarters_counts_at_six_of_ten_thresholds():
    ground_truth = truth([(0, 3, (0, 0, 100, 100), 0)])
    numbers = evaluated(ground_truth, [found((1, 0.3, (0, 0, 100, 76)))]).compute()
    assert numbers["AP"] == pytest.approx(0.6)
    assert numbers["AP50"] == numbers["AP75"] == pytest.approx(1)


def test_perfect_detections_score_1_everywhere():
    ground_truth, _ = random_data(6)
    ground_truth["annotations"] = [row for row in ground_truth["annotations"] if not row["iscrowd"]]
    labels = {category_id: label for label, category_id in enumerate(CATEGORY_IDS)}
    detections = []
    for image_id in ids(ground_truth):
        rows = [row for row in ground_truth["annotations"] if row["image_id"] == image_id]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in rows)]
        detections.append(
            found(*((labels[row["category_id"]], 0.9, box) for row, box in zip(rows, corners, strict=True)))
        )
    numbers = evaluated(ground_truth, detections).compute()
    assert numbers["AP"] == numbers["AR"] == numbers["AP_small"] == numbers["AP_large"] == pytest.approx(1)


def test_a_detection_within_a_crowd_is_neither_right_nor_wrong():
    ground_truth = truth([(0, 70, (10, 10, 50, 50), 0), (0, 70, (200, 200, 200, 200), 1)])
    right = (0, 0.5, (10, 10, 60, 60))
    in_crowd = [(0, 0.9, (210 + 20 * i, 220, 260 + 20 * i, 280)) for i in range(5)]
    assert evaluated(ground_truth, [found(*in_crowd, right)]).compute()["AP"] == pytest.approx(1)
    elsewhere = (0, 0.9, (500, 10, 560, 60))
    assert evaluated(ground_truth, [found(elsewhere, right)]).compute()["AP"] == pytest.approx(0.5)


def test_an_image_that_comes_twice_counts_once():
    ground_truth, detections = random_data(10)
    once, image_ids = evaluated(ground_truth, detections), ids(ground_truth)
    order = [3, 1, 9, 0, 2, 4, 5, 6, 7, 8, 3, 9]
    again = evaluated(ground_truth, [detections[i] for i in order], [image_ids[i] for i in order])
    assert again.compute() == once.compute()
    assert again.results() == once.results()


def test_only_images_that_were_evaluated_count():
    ground_truth, detections = random_data(10)
    kept = ids(ground_truth)[:4]
    part = {
        name: [row for row in rows if row.get("image_id", row["id"]) in kept] if name != "categories" else rows
        for name, rows in ground_truth.items()
    }
    assert evaluated(ground_truth, detections[:4]).compute() == evaluated(part, detections[:4]).compute()


def test_nothing_detected_is_0_and_nothing_to_find_is_minus_1():
    ground_truth, detections = random_data(5)
    empty = evaluated(ground_truth, [found()] * 5)
    assert empty.results() == []
    numbers = empty.compute()
    assert numbers["AP"] == numbers["AR"] == 0
    assert numbers["per_class"] == {"cat": 0, "dog": 0, "cow": 0, "unicorn": -1}
    for nothing in (evaluated(truth([]), detections), evaluated(truth([]), [found()] * 5)):
        numbers = nothing.compute()
        assert {numbers[name] for name in NUMBERS} == set(numbers["per_class"].values()) == {-1}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_any_image_there_are_no_numbers():
    metric = CocoAP(random_data(2)[0], CATEGORY_IDS)
    metric.update([], [])
    assert metric.compute()["AP"] == -1
    assert metric.results() == []


def test_after_a_reset_the_next_evaluation_starts_afresh():
    ground_truth, detections = random_data(6)
    metric = evaluated(ground_truth, detections)
    first = metric.compute()
    metric.reset()
    metric.update([found()] * 6, ids(ground_truth))
    assert metric.compute()["AP"] == 0
    metric.reset()
    metric.update(detections, ids(ground_truth))
    assert metric.compute() == first


def test_detections_that_are_not_numbers_are_left_out_as_pycocotools_would_count_them_right(caplog):
    ground_truth = truth([(0, 70, (10, 10, 50, 50), 0)])
    spoiled = found((0, 0.9, (float("nan"), 10, 60, 60)), (0, float("nan"), (10, 10, 60, 60)))
    metric = evaluated(ground_truth, [spoiled])
    assert metric.compute()["AP"] == 0
    assert metric.results() == []
    assert "2 detections are left out" in caplog.text


@pytest.mark.parametrize("counted", [100, 250])
def test_the_number_of_detections_that_count_is_an_option(counted):
    """A perfect detection of each of 200 objects: the best of them count, in the order of their scores."""
    boxes = [(column, line, 4, 4) for line in range(0, 50, 5) for column in range(0, 100, 5)]
    ground_truth = truth([(0, CATEGORY_IDS[0], box, 0) for box in boxes])
    corners = [(x, y, x + w, y + h) for x, y, w, h in boxes]
    metric = CocoAP(ground_truth, CATEGORY_IDS, counted)
    metric.update([found(*((0, 0.9 - number / 1000, box) for number, box in enumerate(corners)))], [5])
    numbers = metric.compute()
    assert numbers["AR"] == min(1, counted / 200)
    assert numbers["AP"] == pytest.approx(min(1, 51 / 101 if counted == 100 else 1))  # of 101 recalls


def test_nothing_is_printed_and_the_ground_truth_given_stays_as_it_was(capsys):
    ground_truth, detections = random_data(5)
    before = json.dumps(ground_truth)
    evaluated(ground_truth, detections).compute()
    assert json.dumps(ground_truth) == before
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def process(rank, store, queue):
    """One of two: what it saw, gathered; and again with the second having seen nothing."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    ground_truth, detections = random_data(11)
    image_ids = ids(ground_truth)
    mine = [*range(rank, 11, 2)] + [0] * rank  # a distributed sampler begins again at the end
    metric = CocoAP(ground_truth, CATEGORY_IDS)
    for index in mine:
        metric.update([detections[index]], [image_ids[index]])
    outcome = [metric.compute(), metric.results()]
    metric.reset()
    if rank == 0:
        metric.update(detections[:3], image_ids[:3])
    queue.put([*outcome, metric.compute(), metric.results()])
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_gather_what_each_of_them_saw_even_where_one_saw_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=process, args=(rank, tmp_path / "store", queue)) for rank in range(2)]
    for each in processes:
        each.start()
    outcomes = [queue.get(timeout=60) for _ in processes]
    for each in processes:
        each.join(timeout=60)
    ground_truth, detections = random_data(11)
    alone, part = evaluated(ground_truth, detections), evaluated(ground_truth, detections[:3])
    expected = [alone.compute(), alone.results(), part.compute(), part.results()]
    assert outcomes == [expected, expected]


def test_matches_are_right_false_and_missed_detections_by_hand():
    box, other, crowd, small = (10, 10, 50, 50), (100, 100, 50, 50), (300, 300, 80, 80), (0, 0, 5, 5)
    ground_truth = truth([(0, 70, box, 0), (0, 3, other, 0), (0, 70, crowd, 1), (2, 25, small, 0)])
    detections = [
        found(
            (0, 0.9, (10, 10, 60, 60)),
            (0, 0.8, (12, 12, 60, 60)),  # the object is taken
            (0, 0.7, (100, 100, 150, 150)),  # another class is there
            (0, 0.6, (300, 300, 340, 340)),  # in a crowd: neither right nor wrong
            (1, 0.2, (100, 100, 150, 150)),  # below the threshold
        ),
        found(),
        found((2, 0.5, (0, 0, 3, 3))),  # its IoU is 0.36
    ]
    first, second, third = evaluated(ground_truth, detections).match(0.3)
    assert [match.image_id for match in (first, second, third)] == [5, 16, 27]
    assert [row["score"] for row in first.right] == pytest.approx([0.9])
    assert [row["score"] for row in first.false] == pytest.approx([0.8, 0.7])
    assert [row["id"] for row in first.missed] == [2]
    assert second == (16, [], [], [])
    assert len(third.false) == len(third.missed) == 1
    cat, dog, cow, unicorn = class_scores([first, second, third], CATEGORY_IDS)
    assert cat == {"objects": 1, "precision": pytest.approx(1 / 3, abs=1e-6), "recall": 1.0, "f1": 0.5}
    assert dog == {"objects": 1, "precision": None, "recall": 0.0, "f1": 0.0}
    assert cow == {"objects": 1, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert unicorn == {"objects": 0, "precision": None, "recall": None, "f1": None}
