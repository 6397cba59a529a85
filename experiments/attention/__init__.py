"""Show where a Mobile-Former attends: the attention between feature map and tokens in each block.

The layers that compute this attention are called the bridge, see :mod:`mobile_former.bridge`. Run ``python -m
experiments.attention``, or call the functions of this package in a notebook.
"""

from experiments.attention.figures import best_queries, draw_boxes, draw_bridge
from experiments.attention.look import load_predictor, look
from experiments.attention.recording import BlockAttention, block_names, box_steps, bridge_attention, recording

__all__ = [
    "BlockAttention",
    "best_queries",
    "block_names",
    "box_steps",
    "bridge_attention",
    "draw_boxes",
    "draw_bridge",
    "load_predictor",
    "look",
    "recording",
]
