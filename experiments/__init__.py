"""Commands for benchmarks, comparisons, sweeps, ablations and notebooks, and the results of these experiments."""

import mobile_former.training  # noqa: F401  # names the missing extra before a command fails on it
