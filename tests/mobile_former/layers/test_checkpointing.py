import pickle

import pytest
import torch

import mobile_former
from tests.conftest import assert_same_step, kept_for_backward


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("name", ["mobile_former_26m", "mobile_former_151m"])
def test_a_step_with_checkpointing_is_the_same_with_all_its_random_draws(name, spatial):
    model = mobile_former.create_model(
        name, num_classes=4, dropout=0.3, drop_path=0.3, spatial_dynamic_relu=spatial
    ).double()
    x = torch.randn(4, 3, 45, 71).double()
    mask = torch.zeros(4, 45, 71, dtype=torch.bool)
    mask[1, 30:] = mask[2, :, 40:] = True

    def loss_of(model):
        maps, tokens = model.forward_features(x, mask)
        return model(x).square().mean() + sum(m.square().mean() for m in maps.values()) + tokens.square().mean()

    assert_same_step(model, loss_of)


def test_a_step_with_checkpointing_is_the_same_under_autocast_and_with_frozen_norms():
    model = mobile_former.mobile_former_52m(num_classes=4, drop_path=0.2)
    for module in list(model.modules())[::3]:
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    x = torch.randn(4, 3, 64, 64)

    def loss_of(model):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().square().mean()

    assert_same_step(model, loss_of)


def test_checkpointing_saves_little_and_changes_nothing_else():
    model = mobile_former.mobile_former_508m(num_classes=10)
    x = torch.randn(4, 3, 224, 224)
    whole = kept_for_backward(model.to("meta"), x.to("meta"))
    mobile_former.checkpoint_gradients(model)
    assert kept_for_backward(model, x.to("meta")) < 0.12 * whole
    model = mobile_former.mobile_former_26m(num_classes=10).eval()
    with torch.no_grad():
        expected = model(x)
        mobile_former.checkpoint_gradients(model)
        assert torch.equal(model(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_checkpointing_can_be_disabled():
    model = mobile_former.mobile_former_26m()
    blocks = [module for module in model.modules() if hasattr(type(module).forward, "recomputable")]
    assert len(blocks) == len(model.backbone.blocks)
    for enable in (True, False):
        mobile_former.checkpoint_gradients(model, enable)
        assert {block.checkpoint_gradients for block in blocks} == {enable}


def test_a_model_without_blocks_is_an_error():
    with pytest.raises(mobile_former.InputError, match="Linear has no block that supports gradient checkpointing"):
        mobile_former.checkpoint_gradients(torch.nn.Linear(3, 3))
