"""What the commands ``sweep`` and ``compare`` do: run the trials, then write the report."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.options import require_free_options, require_options
from experiments.sweep.plan import Plan
from experiments.sweep.storage import alone
from experiments.sweep.study import Sweep, state_of
from experiments.sweep.worker import run_trials
from mobile_former.errors import InputError


def run_sweep(
    command: str, plan: Plan, options: argparse.Namespace, others: Sequence[str], report: Callable[[Sweep], None]
) -> None:
    """Run the trials of a sweep, then write its report. With ``--workers 0``, only write the report.

    If trials have failed, print their errors and exit with status 1.

    Args:
        command: "sweep" or "compare".
        plan: the sweep's config.
        options: the options of :func:`~experiments.options.trainings_parser`.
        others: further command-line options of every trial.
        report: function that writes the report.
    """
    if sys.platform == "win32":
        raise InputError(f"{command} runs on Linux and macOS: on Windows, run this command in WSL")
    if options.workers < 0:
        raise InputError(f"--workers is {options.workers}: give 0 (only write the report) or more")
    require_free_options(others, plan.space)
    output = options.output or Path("runs") / command / options.config.stem
    url = options.storage or f"sqlite:///{output / 'study.db'}"
    sweep = Sweep(plan, options.config.stem, output, url, others, may_begin=options.workers > 0)
    if options.workers:
        if not sweep.last_attempts():
            require_options(plan.task, [*plan.arguments(plan.example()), *others])
        sweep.retry_failed()
        run_trials(sweep, options.workers)
    attempts, (over, total) = sweep.last_attempts(), sweep.progress()
    if not attempts:
        raise InputError(f"the sweep {sweep.name!r} has nothing to report: no trial was begun")
    with alone(url):  # several workers may finish at the same time
        report(sweep)
    if over < total:
        print(f"{total - over} of {total} trials are not finished: run the same command again to continue")
    failed = {number: trial.user_attrs for number, trial in attempts.items() if state_of(trial) == "failed"}
    for number, known in failed.items():
        print(f"error: trial {number} failed: {known['error']} (see {known['log']})", file=sys.stderr)
    if failed:
        sys.exit(1)
