"""Code that the commands ``sweep`` and ``compare`` share: run the trials, then write the report."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.options import require_free_options, require_options, require_whole
from experiments.sweep.plan import Plan
from experiments.sweep.storage import alone
from experiments.sweep.study import Sweep, state_of
from experiments.sweep.worker import run_trials
from mobile_former.errors import InputError


def run_sweep(
    command: str, plan: Plan, options: argparse.Namespace, others: Sequence[str], report: Callable[[Sweep], None]
) -> None:
    """Run the trials of a sweep or comparison, then write its report. If trials have failed, exit with status 1.

    ``options`` come from :func:`~experiments.options.trainings_parser`. ``others`` are ``fit`` options for all trials.
    """
    require_whole("--workers", options.workers, 0)
    require_free_options(others, plan.space)
    output = options.output or Path("runs") / command / options.config.stem
    url = options.storage or f"sqlite:///{output / 'study.db'}"
    sweep = Sweep(plan, options.config.stem, output, url, others, may_begin=options.workers > 0)
    if options.workers:
        if not sweep.last_attempts():
            first = {name: domain.to_external_repr(getattr(domain, "low", 0)) for name, domain in plan.space.items()}
            require_options(plan.task, [*plan.arguments(first), *others])
        with alone(url):
            sweep.repeat("failed")
        run_trials(sweep, options.workers)
    if not (attempts := sweep.last_attempts()):
        raise InputError(f"the sweep {sweep.name!r} has nothing to report: no trial was begun")
    with alone(url):  # several workers may finish at the same time
        report(sweep)
    over, total = sweep.progress()
    if over < total:
        print(f"{total - over} of {total} trials are not finished: run the same command again to continue")
    if failed := [trial.user_attrs for trial in attempts.values() if state_of(trial) == "failed"]:
        for known in failed:
            print(f"error: trial {known['number']} failed: {known['error']} (see {known['log']})", file=sys.stderr)
        sys.exit(1)
