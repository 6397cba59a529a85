"""``python -m experiments.diagnosis``: where E2E-MF gains or loses average precision."""

import re

import pytest
import torch

from detection.data.scenes import write_coco
from detection.module import DetectionModule
from experiments.diagnosis import chosen_positions, corrections, coverage, dense_detections, main
from mobile_former.errors import InputError
from tests.conftest import run_module
from tests.experiments.conftest import DATA, OPTIONS

TARGET = {"labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.2, 0.4]])}
# The first query finds the second object as another class, the second one half of the first object, the third nothing.
SCORES = torch.tensor([[0.1, 0.8], [0.2, 0.6], [0.3, 0.1]])
BOXES = torch.tensor([[0.7, 0.6, 0.2, 0.4], [0.25, 0.3, 0.1, 0.2], [0.1, 0.9, 0.1, 0.1]])
PAIRS = (torch.tensor([0, 1]), torch.tensor([1, 0]))


def test_the_command_prints_every_stage_of_a_checkpoint(tmp_path):
    module = DetectionModule(list("0123456789"), name="e2e_mf_26m", **OPTIONS)
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": DATA | {"short_side": 64, "short_sides": [64], "longest": 64},
    }
    torch.save(content, tmp_path / "detector.ckpt")
    write_coco(tmp_path / "scenes", "val", 3)
    command = ("experiments.diagnosis", "--ckpt_path", "detector.ckpt", "--data.root", "scenes")
    result = run_module(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for stage in ("dense head, non-maximum", "chosen positions", "after block 1", "after block 2, non-maximum"):
        assert re.search(stage, result.stdout), stage
    assert "boxes of matched queries" in result.stdout


def test_a_checkpoint_of_another_model_is_refused(checkpoints, monkeypatch):
    monkeypatch.setattr("sys.argv", ["diagnosis", "--ckpt_path", str(checkpoints["retinanet"])])
    with pytest.raises(InputError, match="holds retinanet_mf_26m: give an E2E-MF detector with choose_queries"):
        main()


def test_the_coverage_of_two_objects_by_three_queries():
    objects, queries = coverage(SCORES, BOXES, PAIRS, TARGET)
    torch.testing.assert_close(objects, torch.tensor([[0.5], [1.0]]))
    expected = [[1, 1, 0, 0.8], [0.5, 1, 1, 0.6], [0, 0, 0, 0.3]]
    torch.testing.assert_close(queries, torch.tensor(expected))


def test_an_image_without_objects_has_no_coverage():
    empty = {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    none = torch.zeros(0, dtype=torch.long)
    objects, queries = coverage(SCORES, BOXES, (none, none), empty)
    assert objects.shape == (0, 1)
    assert queries.tolist() == [[0, 0, 0, score] for score in SCORES.amax(1).tolist()]


def test_each_correction_changes_only_its_kind_of_error():
    corrected = corrections(SCORES[None], BOXES[None], [PAIRS], [TARGET])
    scores, boxes = corrected["classes of matched queries"]
    torch.testing.assert_close(scores[0], torch.tensor([[0.8, 0], [0, 0.6], [0.3, 0.1]]))
    assert torch.equal(boxes[0], BOXES)
    scores, boxes = corrected["boxes of matched queries"]
    assert torch.equal(scores[0], SCORES)
    assert torch.equal(boxes[0], torch.stack([TARGET["boxes"][1], TARGET["boxes"][0], BOXES[2]]))
    scores, _ = corrected["unmatched queries left out"]
    assert torch.equal(scores[0], SCORES * torch.tensor([[1], [1], [0]]))


def test_the_dense_heads_distinct_positions_and_its_detections():
    logits = torch.tensor([[[2.0, -5], [1, -5], [-5, 3], [-4, -6]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.38], [0.5, 0.5, 0.4, 0.4], [0.9, 0.9, 0.4, 0.2]]])
    dense = {"logits": logits, "boxes": boxes, "peaks": torch.ones(1, 4, dtype=torch.bool)}
    chosen = chosen_positions(dense, 3)
    assert torch.equal(chosen["logits"][0], logits[0, [2, 3, 0]])
    assert torch.equal(chosen["boxes"][0], boxes[0, [2, 3, 0]])
    (found,) = dense_detections(dense, [(100, 200)])
    assert found["labels"].tolist() == [1, 0]  # the second position repeats the first, and the last has a low score
    torch.testing.assert_close(found["boxes"], torch.tensor([[60.0, 30, 140, 70]]).expand(2, -1))
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 2]).sigmoid())
