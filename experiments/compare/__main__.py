"""Train several models with the same config and data over several seeds, and compare score, cost and latency.

    python -m experiments.compare --config experiments/configs/sign_digits.yaml --data.root DIR

The config of the comparison names the task, one of the task's training configs, the options of all runs, the seeds, and
the options of each model. Any other command-line option is passed to every run.

To continue an interrupted comparison, run the same command again. Finished runs are kept, interrupted runs resume, and
failed runs are tried again. The output folder contains the runs, their logs, comparison.md, comparison.json and
comparison.png.
"""

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from experiments.compare.plan import Run, plan_runs, read_plan
from experiments.compare.report import compare, report
from experiments.runs import find_config, last_error, require_same_options, trainings_parser
from mobile_former.training.cli.command import run_command


def main() -> None:
    """Train all runs that are not finished, then compare the models."""
    parser = trainings_parser(
        "compare", __doc__.partition("\n")[0], config="the comparison, see experiments/configs/", each="run"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="seeds (default: the config's)")
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
            print("    already finished")
        elif train(run) or not run.folder.is_finished:
            failed.append(run)
    finished = [run for run in runs if run.folder.is_finished]
    if finished:
        report(compare(plan, finished), plan, output)
    if failed:
        for run in failed:
            print(f"error: {run.label}, seed {run.seed} failed: {last_error(run.log)} (see {run.log})", file=sys.stderr)
        sys.exit(1)


def train(run: Run) -> int:
    """Train a run in a separate process, and return the exit status of the process.

    The output of the process is appended to the log of the run. The lines that report an epoch are also printed.
    """
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("a") as log:
        log.write(f"$ {shlex.join(run.command)}\n")
        with subprocess.Popen(
            run.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if line.startswith("epoch "):
                    print(f"    {line.rstrip()}", flush=True)
    if process.returncode:
        print(f"    failed: {last_error(run.log)}", flush=True)
    return process.returncode


if __name__ == "__main__":
    run_command(main)
