"""Search options of ``fit`` by Optuna, or try all of a grid: many trainings by one config, on one machine or several.

    python -m experiments.sweep --config experiments/configs/sweep_classification.yaml --data.root DIR --workers 2

The config names the task, its recipe, the options of all trials and the space; any other option goes to every trial.
Run it again, and it goes on where it stopped. The same command elsewhere, with the same --storage, is one worker more.
"""

import contextlib
import importlib
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.runs import find_config, trainings_parser
from experiments.sweep.plan import (
    Plan,
    read_plan,
    require_free_options,
    trial_arguments,
)
from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.extras import import_extra


def main() -> None:
    """Run trials until none is left, then report."""
    parser = trainings_parser(
        "sweep", __doc__.partition("\n")[0], config="the sweep, see experiments/configs/sweep_*.yaml", each="trial"
    )
    parser.add_argument(
        "--storage",
        default=None,
        help="a database that workers share: sqlite:///FILE on one machine, postgresql://… or mysql://… on many; "
        "default: study.db in the output folder",
    )
    parser.add_argument("--trials", type=int, default=None, help="in place of the config's; of a grid its first ones")
    parser.add_argument(
        "--workers", type=int, default=1, help="trials at a time on this machine; 0 reports what there is"
    )
    options, others = parser.parse_known_args()
    if sys.platform == "win32":
        raise InputError("sweeps run on Linux and macOS: on Windows, start this one in WSL")
    if options.workers < 0:
        raise InputError(f"--workers is {options.workers}: give 0 (report what there is) or more")
    if options.trials is not None and options.trials < 1:
        raise InputError(f"--trials is {options.trials}: give at least 1")
    plan = read_plan(find_config(options.config))
    if options.trials is not None:
        plan = replace(plan, trials=options.trials)
    output = options.output or Path("runs") / "sweep" / options.config.stem
    url = options.storage or f"sqlite:///{output / 'study.db'}"
    require_free_options(plan, others)
    import_extra("optuna", "sweep", "a sweep needs optuna")
    from experiments.sweep.report import report
    from experiments.sweep.worker import Sweep

    sweep = Sweep(plan, options.config.stem, output, url, others, may_begin=options.workers > 0)
    if options.workers:
        if sweep.is_new:
            require_options(plan, others)
        sweep.prepare()
        sweep.work(options.workers)
    failed = report(sweep)
    for told in failed:
        print(f"error: {told}", file=sys.stderr)
    if failed:
        sys.exit(1)


def require_options(plan: Plan, others: Sequence[str]) -> None:
    """Have ``fit`` parse the first trial's command line, so that what it does not take is told before any training."""
    first = {name: domain[0] if isinstance(domain, list) else domain.low for name, domain in plan.space.items()}
    own = sys.argv
    sys.argv = [f"{plan.task}.fit", *trial_arguments(plan, first, others), "--print_config"]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module(f"{plan.task}.fit").main()
    except SystemExit as end:
        if end.code:  # what is wrong has been printed
            raise
    finally:
        sys.argv = own


if __name__ == "__main__":
    run_command(main)
