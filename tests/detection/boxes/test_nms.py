import numpy as np
import torch

from detection.boxes.nms import nms
from tests.detection.conftest import overlap_of


def test_suppression_is_greedy_per_class_and_sorts_by_score():
    generator = np.random.default_rng(3)
    corners = generator.uniform(0, 60, (80, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(10, 40, (80, 2))], 1)
    scores, labels = generator.permutation(80) / 80, generator.integers(0, 3, 80)
    centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    kept = []
    for index in np.argsort(-scores):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(overlap_of(centred[index], centred[other])[0] <= 0.5 for other in rivals):
            kept.append(index)
    found = nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), 0.5)
    assert found.tolist() == [int(index) for index in kept]
    assert len(nms(torch.empty(0, 4), torch.empty(0), torch.empty(0).long(), 0.5)) == 0
