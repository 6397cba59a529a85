"""Train several models by one recipe on the same data, over seeds, and compare score, cost and latency.

    python -m experiments.compare --config experiments/configs/sign_digits.yaml --data.root DIR

The config names the task, its recipe, the options of all runs, the seeds, and the models by the options that tell them
apart; any other option goes to every run. Run it again, and it goes on where it stopped: finished runs
stay, interrupted ones continue, failed ones are tried once more. Written to the output folder: the runs, a log of each,
comparison.md, comparison.json and comparison.png.
"""

import sys
from dataclasses import replace
from pathlib import Path

from experiments.compare.plan import plan_runs, read_plan, train
from experiments.compare.report import compare, report
from experiments.runs import (
    find_config,
    last_error,
    require_same_options,
    trainings_parser,
)
from mobile_former.training.cli.command import run_command


def main() -> None:
    """Train what is not yet trained, then compare."""
    parser = trainings_parser(
        "compare", __doc__.partition("\n")[0], config="the comparison, see experiments/configs/", each="run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="in place of the config's")
    options, others = parser.parse_known_args()
    plan = read_plan(find_config(options.config))
    if options.seeds:
        plan = replace(plan, seeds=list(dict.fromkeys(options.seeds)))
    output = options.output or Path("runs") / "compare" / options.config.stem
    runs = plan_runs(plan, output, others)
    require_same_options(runs, output / "options.json")
    failed = []
    for number, run in enumerate(runs, start=1):
        print(f"[{number}/{len(runs)}] {run.label}, seed {run.seed}", flush=True)
        if run.folder.is_finished:
            print("    finished before")
        elif train(run) or not run.folder.is_finished:
            failed.append(run)
    finished = [run for run in runs if run.folder.is_finished]
    if finished:
        report(compare(plan, finished), plan, output)
    if failed:
        for run in failed:
            print(f"error: {run.label}, seed {run.seed} failed: {last_error(run.log)} (see {run.log})", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
