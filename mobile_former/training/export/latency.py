"""Measuring the latency of a function call."""

import statistics
import time
from collections.abc import Callable


def milliseconds(call: Callable[[], object], repetitions: int = 20) -> float:
    """Return the median time of a function call in milliseconds.

    Args:
        call: function without arguments.
        repetitions: number of measured calls. Three warm-up calls before them are not measured.
    """
    for _ in range(3):
        call()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
