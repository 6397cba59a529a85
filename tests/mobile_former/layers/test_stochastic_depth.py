import pytest
import torch

from mobile_former.layers.stochastic_depth import StochasticDepth


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    out = layer(torch.ones(4000, 2, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0, 1 / 0.75])
    assert abs(out.mean().item() - 1) < 0.03


def test_nothing_is_dropped_in_evaluation_or_at_rate_0():
    branch = torch.randn(5, 2)
    assert StochasticDepth(0.25).eval()(branch) is branch
    assert StochasticDepth(0.0)(branch) is branch
