"""Time candidates by turns in one process, so that whatever else the machine does falls on all of them alike."""

import gc
import random
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    clock: Callable[[], float],
    repeat: int = 1,
    seed: int = 0,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Time candidates in rounds, in each of which all take their turn, in an order drawn anew.

    Args:
        candidates: what to run, by label.
        rounds: that are timed.
        warmup: rounds before these, that are not.
        clock: tells the seconds, once all that was begun is done.
        repeat: runs of a candidate in its turn, of which the median counts.
        seed: of the orders.
        after_round: called between rounds, where it disturbs no timing.

    Returns:
        For each label its seconds, round by round.
    """
    draw = random.Random(seed)
    seconds: dict[str, list[float]] = {label: [] for label in candidates}
    gc.collect()
    gc.freeze()  # what is there stays, and need not be looked through after each round
    gc.disable()  # or a candidate would wait for what others have left behind
    try:
        for number in range(warmup + rounds):
            for label in draw.sample(list(candidates), len(candidates)):
                turn = []
                for _ in range(repeat):
                    start = clock()
                    candidates[label]()
                    turn.append(clock() - start)
                if number >= warmup:
                    seconds[label].append(statistics.median(turn))
            gc.collect()
            after_round()
    finally:
        gc.enable()
        gc.unfreeze()
    return seconds


def quartiles(values: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Ratios round by round: what slowed a round down as a whole cancels out."""
    return [above / below for above, below in zip(numerator, denominator, strict=True)]
