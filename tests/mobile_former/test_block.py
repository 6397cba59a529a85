import torch
import torch.nn.functional as F

from mobile_former.block import MobileFormerBlock
from mobile_former.variants import BlockSpec


def test_a_block_equals_a_computation_by_hand():
    """Spatially aware block: a computation position by position, head by head, in plain loops."""
    torch.manual_seed(0)
    block = MobileFormerBlock(BlockSpec("same", 8, (2,), 1), 8, 16, spatial_dynamic_relu=True).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, tokens = torch.randn(1, 8, 3, 2).double(), torch.randn(1, 5, 16).double()
    with torch.no_grad():
        actual_x, actual_tokens = block(x, tokens)
        positions = x[0].flatten(1).T  # (6, 8)
        bridge = block.to_former
        query = bridge.query(tokens)[0]
        gate = 2 * ((bridge.gate(tokens)[0] + 3).clamp(0, 6) / 6)
        gathered = torch.zeros(5, 8, dtype=torch.double)
        logits = torch.zeros(2, 5, 6, dtype=torch.double)
        for head, channels in enumerate((slice(0, 4), slice(4, 8))):
            for token in range(5):
                for position in range(6):
                    logits[head, token, position] = query[token, channels] @ positions[position, channels] / 2
                weights = logits[head, token].exp() / logits[head, token].exp().sum()
                gathered[token, channels] = (weights[:, None] * positions[:, channels]).sum(0)
        new_tokens = bridge.norm(tokens[0] + bridge.output(gathered * gate))
        former = block.former
        attended = torch.zeros(5, 16, dtype=torch.double)
        for head in range(4):
            channels = slice(4 * head, 4 * head + 4)
            scores = former.query(new_tokens)[:, channels] @ new_tokens[:, channels].T / 2
            attended[:, channels] = scores.softmax(1) @ new_tokens[:, channels]
        new_tokens = former.attention_norm(new_tokens + former.output(attended))
        new_tokens = former.ffn_norm(new_tokens + former.ffn[2](F.gelu(former.ffn[0](new_tokens))))
        torch.testing.assert_close(actual_tokens[0], new_tokens)

        mixing = logits.mean(0).softmax(0)  # (tokens, positions)

        def dynamic(module, y):
            theta = (module.slopes(module.reduce(new_tokens).relu()) + 3).clamp(0, 6) / 6  # (5, 2C)
            out = torch.zeros_like(y)
            for position in range(6):
                mixed = (mixing[:, position, None] * theta).sum(0)
                first, second = mixed.chunk(2)
                row, column = divmod(position, 2)
                value = y[0, :, row, column]
                out[0, :, row, column] = torch.maximum((2 * (first - 0.5) + 1) * value, 2 * (second - 0.5) * value)
            return out

        mobile = block.mobile
        hidden = dynamic(mobile.expand_relu, mobile.expand(x))
        hidden = dynamic(mobile.depthwise_relu, mobile.depthwise(hidden))
        y = x + mobile.project(hidden)
        key, value = block.to_mobile.key(new_tokens), block.to_mobile.value(new_tokens)
        expected = y.clone()
        for position in range(6):
            row, column = divmod(position, 2)
            for channels in (slice(0, 4), slice(4, 8)):
                weights = (key[:, channels] @ y[0, channels, row, column] / 2).softmax(0)
                expected[0, channels, row, column] += weights @ value[:, channels]
        torch.testing.assert_close(actual_x, expected)


def test_a_downsampling_block_halves_the_map_and_the_token_weights_without_padding():
    torch.manual_seed(0)
    block = MobileFormerBlock(BlockSpec("down", 12, (6, 4), 2), 8, 16, spatial_dynamic_relu=True).double().eval()
    x, tokens = torch.randn(1, 8, 5, 7).double(), torch.randn(1, 3, 16).double()
    padding, out_padding = torch.zeros(1, 1, 5, 7, dtype=torch.bool), torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    padding[..., 4:], out_padding[..., 2:] = True, True
    seen = []
    block.mobile.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    with torch.no_grad():
        found, found_tokens = block(x, tokens, padding, out_padding)
        expected, expected_tokens = block(x[..., :4], tokens)
    assert found.shape == (1, 12, 3, 4)
    torch.testing.assert_close(found_tokens, expected_tokens)
    torch.testing.assert_close(found[..., :2], expected)
    torch.testing.assert_close(seen[0][..., :2], seen[1])
    torch.testing.assert_close(seen[0].sum(1), torch.ones(1, 3, 4).double())
