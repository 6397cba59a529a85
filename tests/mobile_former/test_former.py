import torch
import torch.nn.functional as F

from mobile_former.former import Former
from mobile_former.layers.stochastic_depth import StochasticDepth


def test_former_equals_a_computation_token_by_token():
    """Four heads; keys and values are slices of the tokens, and the position is added to queries and keys only."""
    torch.manual_seed(0)
    former = Former(16).double().eval()
    for parameter in former.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens, position = torch.randn(2, 2, 5, 16, dtype=torch.double)
    with torch.no_grad():
        found, without = former(tokens, position), former(tokens)
        torch.testing.assert_close(without, former(tokens, torch.zeros_like(position)))
        for sample in range(2):
            keys = tokens[sample] + position[sample]
            for token in range(5):
                query, attended = former.query(keys[token]), torch.zeros(16, dtype=torch.double)
                for head in range(4):
                    channels = slice(4 * head, 4 * head + 4)
                    scores = torch.stack([query[channels] @ key[channels] / 4**0.5 for key in keys])
                    weights = scores.exp() / scores.exp().sum()
                    attended[channels] = sum(w * v[channels] for w, v in zip(weights, tokens[sample], strict=True))
                expected = former.attention_norm(tokens[sample, token] + former.output(attended))
                expected = former.ffn_norm(expected + former.ffn[2](F.gelu(former.ffn[0](expected))))
                torch.testing.assert_close(found[sample, token], expected)


def test_stochastic_depth_drops_the_attention_only():
    former = Former(16, drop_path=0.3)
    assert [part.rate for part in former.modules() if isinstance(part, StochasticDepth)] == [0.3]
    former.drop_path = torch.nn.Module()
    former.drop_path.forward = torch.zeros_like  # every sample dropped
    tokens = torch.randn(2, 5, 16)
    normed = former.attention_norm(tokens)
    torch.testing.assert_close(former(tokens), former.ffn_norm(normed + former.ffn(normed)))
