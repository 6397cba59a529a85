"""Interleaved timing: candidates take turns in one process, so other load on the machine slows all of them equally."""

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
    """Time candidates in rounds; in every round each candidate has one turn, in a new random order.

    Args:
        candidates: the functions to time, by label.
        rounds: the number of timed rounds.
        warmup: the number of untimed rounds before the timed rounds.
        clock: function that waits until the device has finished its pending work, and returns the time in seconds.
        repeat: the number of runs in a candidate's turn. The median of their times is the time of the turn.
        seed: the seed of the random orders.
        after_round: a function to call after each round, outside the timing.

    Returns:
        The seconds of each candidate in each round, by label.
    """
    draw = random.Random(seed)
    seconds: dict[str, list[float]] = {label: [] for label in candidates}
    gc.collect()
    gc.freeze()  # later collections skip the objects that exist now
    gc.disable()  # no candidate pays for collecting the garbage of another
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
    """Return the lower quartile, median and upper quartile."""
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Return ``numerator / denominator`` for each round. A slowdown of a whole round cancels out."""
    return [over / under for over, under in zip(numerator, denominator, strict=True)]
