import math

import pytest
import torch

from detection.losses.focal import PRIOR_LOGIT, focal_loss


def test_the_focal_loss_is_that_of_the_paper():
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    for wanted in (0, 1):
        p = [1 / (1 + math.exp(-x)) for x in logits.tolist()]
        true = [q if wanted else 1 - q for q in p]
        alpha = 0.25 if wanted else 0.75
        expected = [-alpha * (1 - q) ** 2 * math.log(q) for q in true]
        assert focal_loss(logits, torch.full((4,), float(wanted))).tolist() == pytest.approx(expected)


def test_classes_start_with_the_probability_of_the_paper():
    assert torch.tensor(PRIOR_LOGIT).sigmoid().item() == pytest.approx(0.01)
