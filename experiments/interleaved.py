"""Time functions in turns in one process, so that other processes on the machine slow all functions equally."""

import gc
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from experiments.matching import now


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
    """Time functions in rounds. In each round, every function has one turn, and the order of the functions is random.

    Args:
        candidates: dictionary from a label to the function to time.
        rounds: number of timed rounds.
        warmup: number of untimed rounds before the timed rounds.
        clock: function that waits until the device has finished its pending work, then returns the current time in
            seconds.
        repeat: number of calls of a function in its turn. The time of the turn is the median time of the calls.
        seed: seed of the random orders.
        after_round: function to call after each round, outside the timing.

    Returns:
        A dictionary from each label to a list of times in seconds, one time per timed round.
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
    """Return a list: the lower quartile, the median and the upper quartile of the values."""
    return np.quantile(values, [0.25, 0.5, 0.75]).tolist()


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Return a list with the ratio of two times, ``numerator / denominator``, for each round.

    If other processes on the machine slow a round, both of its times grow, and their ratio stays about the same.
    """
    return [over / under for over, under in zip(numerator, denominator, strict=True)]


@torch.inference_mode()
def latencies(models: Sequence[tuple[torch.nn.Module, torch.Tensor]], rounds: int) -> list[float]:
    """Return a list with the median latency of each model for one image, in milliseconds.

    Args:
        models: list of tuples (model, image). The image is ``(1, 3, H, W)``. For a detector, the latency includes the
            post-processing.
        rounds: number of timed rounds. In each round, every model has one turn.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(module: torch.nn.Module, image: torch.Tensor) -> None:
        outputs = module(image)
        if isinstance(outputs, dict):
            module.model.postprocess(outputs, [tuple(image.shape[2:])])

    calls = {str(n): partial(run, each.to(device).eval(), image.to(device)) for n, (each, image) in enumerate(models)}
    seconds = interleave(calls, rounds=rounds, warmup=3, clock=lambda: now(device))
    return [1000 * statistics.median(own) for own in seconds.values()]
