import pytest
import torch

from mobile_former.bridge import FormerToMobile, MobileToFormer


def random(module):
    """The module in float64 with weights far from zero."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def inputs():
    """A map of 3×2 positions and 8 channels, and 5 tokens of dimension 16."""
    torch.manual_seed(0)
    return torch.randn(2, 8, 3, 2, dtype=torch.double), torch.randn(2, 5, 16, dtype=torch.double)


@pytest.mark.parametrize("gated", [True, False])
def test_mobile_to_former_equals_a_computation_position_by_position(gated):
    """Padding is left out; positions are added to queries and keys, not to values; focus is added to the logits."""
    x, tokens = inputs()
    bridge = random(MobileToFormer(8, 16, gated=gated))
    padding = torch.tensor([[[0, 0], [0, 1], [1, 1]], [[0, 0], [0, 0], [0, 0]]], dtype=torch.bool)
    token_position, map_position = torch.randn(2, 5, 16).double(), torch.randn(1, 8, 3, 2).double()
    focus = torch.randn(2, 5, 6).double()
    with torch.no_grad():
        found, found_logits = bridge(
            x, tokens, padding[:, None], token_position=token_position, map_position=map_position, focus=focus
        )
        for sample in range(2):
            for token in range(5):
                query = bridge.query(tokens[sample, token] + token_position[sample, token])
                gathered = torch.zeros(8, dtype=torch.double)
                for head, channels in enumerate((slice(0, 4), slice(4, 8))):
                    weights, values = [], []
                    for position in range(6):
                        row, column = divmod(position, 2)
                        value = x[sample, channels, row, column]
                        logit = query[channels] @ (value + map_position[0, channels, row, column]) / 4**0.5
                        torch.testing.assert_close(found_logits[sample, head, token, position], logit)
                        if not padding[sample, row, column]:
                            weights.append((logit + focus[sample, token, position]).exp())
                            values.append(value)
                    gathered[channels] = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
                if gated:
                    gathered *= 2 * (bridge.gate(tokens[sample, token]) + 3).clamp(0, 6) / 6
                expected = bridge.norm(tokens[sample, token] + bridge.output(gathered))
                torch.testing.assert_close(found[sample, token], expected)


def test_mobile_to_former_is_finite_on_an_image_that_is_all_padding():
    x, tokens = inputs()
    found, _ = random(MobileToFormer(8, 16))(x, tokens, torch.ones(2, 1, 3, 2, dtype=torch.bool))
    assert found.isfinite().all()


def test_former_to_mobile_equals_a_computation_position_by_position():
    """The queries are the map itself; the position is added to the keys, not to the values."""
    x, tokens = inputs()
    bridge, token_position = random(FormerToMobile(8, 16)), torch.randn(2, 5, 16).double()
    with torch.no_grad():
        found = bridge(x, tokens, token_position)
        for sample in range(2):
            keys, values = bridge.key(tokens[sample] + token_position[sample]), bridge.value(tokens[sample])
            for row in range(3):
                for column in range(2):
                    for channels in (slice(0, 4), slice(4, 8)):
                        query = x[sample, channels, row, column]
                        weights = torch.stack([(query @ key[channels] / 4**0.5).exp() for key in keys])
                        gathered = (weights[:, None] * values[:, channels]).sum(0) / weights.sum()
                        torch.testing.assert_close(found[sample, channels, row, column], query + gathered)


@pytest.mark.parametrize("padded", [False, True])
def test_channels_last_maps_give_the_same_outputs_and_gradients_channels_last(padded):
    """The two memory layouts are computed in different ways."""
    torch.manual_seed(0)
    x, tokens = torch.randn(2, 8, 5, 7).double(), torch.randn(2, 6, 16).double()
    padding = torch.zeros(2, 1, 5, 7, dtype=torch.bool)
    padding[1, ..., -2:] = padded
    for bridge, others in (
        (random(MobileToFormer(8, 16)), {"padding": padding, "map_position": torch.randn(1, 8, 5, 7).double()}),
        (random(FormerToMobile(8, 16)), {"token_position": torch.randn(2, 6, 16).double()}),
    ):
        found = []
        for layout in (torch.contiguous_format, torch.channels_last):
            inputs = [x.contiguous(memory_format=layout).requires_grad_(), tokens.clone().requires_grad_()]
            out = bridge(*inputs, **others)
            outs = out if isinstance(out, tuple) else (out,)
            gradients = torch.autograd.grad(sum(each.square().sum() for each in outs), [*inputs, *bridge.parameters()])
            found.append((outs, gradients))
        torch.testing.assert_close(*found)
        assert gradients[0].is_contiguous(memory_format=torch.channels_last)
        if outs[0].ndim == 4:
            assert outs[0].is_contiguous(memory_format=torch.channels_last)
