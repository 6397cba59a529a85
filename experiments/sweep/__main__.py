"""Search for good values of ``fit`` options with Optuna, or train every combination of a grid.

    python -m experiments.sweep --config experiments/configs/sweep_classification.yaml --data.root DIR --workers 2

A trial is one training run. The sweep's config names the task, one of the task's training configs, the options that all
trials share, and the search space. Any other command-line option is passed to every trial. Run the same command again
to continue an interrupted sweep. To add workers, run the same command on other machines, with the same --storage.
"""

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

from experiments.runs import find_config, trainings_parser
from experiments.sweep.plan import Plan, read_plan, require_free_options, trial_arguments
from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.extras import import_extra


def main() -> None:
    """Run the trials of a sweep, then write the report. With ``--workers 0``, only write the report."""
    parser = trainings_parser(
        "sweep", __doc__.partition("\n")[0], config="the sweep, see experiments/configs/sweep_*.yaml", each="trial"
    )
    parser.add_argument(
        "--storage",
        help="the database that the workers share: sqlite:///FILE on one machine, postgresql://… or mysql://… on "
        "several (default: study.db in the output folder)",
    )
    parser.add_argument(
        "--trials", type=int, help="number of trials, or of a grid's first points (default: the config's)"
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="trials at a time on this machine; 0 only writes the report (default: 1)"
    )
    options, others = parser.parse_known_args()
    if sys.platform == "win32":
        raise InputError("sweeps run on Linux and macOS: on Windows, run this command in WSL")
    if options.workers < 0:
        raise InputError(f"--workers is {options.workers}: give 0 (only write the report) or more")
    plan = read_plan(find_config(options.config))
    if options.trials is not None:
        if options.trials < 1:
            raise InputError(f"--trials is {options.trials}: give at least 1")
        plan = replace(plan, trials=options.trials)
    output = options.output or Path("runs") / "sweep" / options.config.stem
    url = options.storage or f"sqlite:///{output / 'study.db'}"
    require_free_options(plan, others)
    import_extra("optuna", "sweep", "a sweep needs Optuna")
    from experiments.sweep.report import report
    from experiments.sweep.worker import Sweep

    sweep = Sweep(plan, options.config.stem, output, url, others, may_begin=options.workers > 0)
    if options.workers:
        if sweep.is_new:
            require_options(plan, others)
        sweep.prepare()
        sweep.work(options.workers)
    failures = report(sweep)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        sys.exit(1)


def require_options(plan: Plan, others: Sequence[str]) -> None:
    """Let ``fit`` parse the command line of one trial, to report unknown options before any training."""
    first = {name: domain[0] if isinstance(domain, list) else domain.low for name, domain in plan.space.items()}
    words = [f"{plan.task}.fit", *trial_arguments(plan, first, others), "--print_config"]
    try:
        with mock.patch.object(sys, "argv", words), contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(f"{plan.task}.fit").main()
    except SystemExit as end:
        if end.code:  # fit has printed the error
            raise


if __name__ == "__main__":
    run_command(main)
