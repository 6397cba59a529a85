"""Show the attention of the bridge between the map and the tokens (:mod:`mobile_former.bridge`) in each block.

Run ``python -m experiments.attention``, or call these functions in a notebook.
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
