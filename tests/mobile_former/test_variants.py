import math
from dataclasses import replace

import pytest

from mobile_former import bridge, former
from mobile_former.variants import VARIANTS

# Chen et al., Mobile-Former, CVPR 2022, table 8: stem, tokens, last map, number of blocks.
PUBLISHED = {
    "mobile_former_26m": (8, (3, 128), 96, 9),
    "mobile_former_52m": (8, (3, 128), 96, 9),
    "mobile_former_96m": (12, (4, 128), 128, 9),
    "mobile_former_151m": (12, (6, 192), 128, 12),
    "mobile_former_214m": (12, (6, 192), 160, 12),
    "mobile_former_294m": (16, (6, 192), 192, 12),
    "mobile_former_508m": (24, (6, 192), 240, 12),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_are_the_published_ones(name):
    spec = VARIANTS[name]
    assert (spec.stem, spec.tokens, spec.blocks[-1].out_channels, len(spec.blocks)) == PUBLISHED[name]


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=list(VARIANTS))
def test_the_blocks_fit_each_other(spec):
    assert [block.kind == "lite" for block in spec.blocks] == [True] + [False] * (len(spec.blocks) - 1)
    assert 2 * math.prod(block.stride for block in spec.blocks) == 32  # the stem has stride 2
    assert {block.kind for block in spec.blocks if block.stride == 2} <= {"lite", "down"}
    for block in spec.blocks:
        assert block.out_channels % bridge.HEADS == 0
        assert block.out_channels % spec.groups == 0
        assert len(block.expansions) == (2 if block.kind == "down" else 1)
    assert spec.tokens[1] % former.HEADS == 0


def test_26m_is_52m_with_four_groups():
    assert VARIANTS["mobile_former_26m"] == replace(VARIANTS["mobile_former_52m"], groups=4)
