import pytest
from torch import nn

import mobile_former
from mobile_former.multiply_adds import madds_by_module

# Published sizes: parameters for 1000 classes, multiply-adds (millions) of one 224×224 image.
COSTS = {
    "mobile_former_26m": (3_232_788, 23.55),
    "mobile_former_52m": (3_469_092, 49.29),
    "mobile_former_96m": (4_585_252, 92.02),
    "mobile_former_151m": (7_595_828, 146.25),
    "mobile_former_214m": (9_425_920, 208.37),
    "mobile_former_294m": (11_422_648, 286.73),
    "mobile_former_508m": (13_976_976, 498.47),
}


@pytest.mark.parametrize("name", mobile_former.list_models())
def test_cost_is_exactly_the_published_one(name):
    model = getattr(mobile_former, name)()
    cost = mobile_former.cost(model)
    params, madds = COSTS[name]
    assert cost.params == params == sum(p.numel() for p in model.parameters())
    assert round(cost.madds / 1e6, 2) == madds


def test_a_small_network_is_counted_by_hand():
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.Flatten(), nn.Sequential(nn.Linear(8 * 5 * 4, 3))
    )
    network.in_chans = 1
    conv, linear = 5 * 4 * 8 * 9, 8 * 5 * 4 * 3
    assert madds_by_module(network, (10, 8)) == {"": conv + linear, "0": conv, "2": linear, "2.0": linear}
    cost = mobile_former.cost(network, (10, 8))
    assert (cost.params, cost.madds) == (8 * 9 + 8 * 5 * 4 * 3 + 3, conv + linear)


def test_cost_leaves_the_model_as_it_was():
    model = mobile_former.mobile_former_26m()
    mobile_former.cost(model, image_size=(96, 64))
    assert model.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())
