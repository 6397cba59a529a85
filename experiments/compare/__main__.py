"""Train several models with the same config and data over several seeds, and compare score, cost and latency.

    python -m experiments.compare --config experiments/configs/sign_digits.yaml --data.root DIR

The config names the task, one of the task's training configs, the options of all runs, the seeds, and the options of
each model. Any other command-line option is passed to every run. Run the same command again to continue. The output
folder contains the runs, their logs, comparison.md, comparison.json and comparison.png.
"""

from functools import partial

from experiments.options import find_config, trainings_parser
from mobile_former.training.cli.command import run_command
from mobile_former.training.extras import import_extra


def main() -> None:
    """Train all runs that are not finished, then compare the models."""
    parser = trainings_parser("compare", __doc__, config="the comparison, see experiments/configs/", each="run")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="seeds (default: the config's)")
    options, others = parser.parse_known_args()
    import_extra("optuna", "sweep", "a comparison needs Optuna")
    from experiments.compare.report import report
    from experiments.sweep.command import run_sweep
    from experiments.sweep.plan import read_comparison

    plan, split = read_comparison(find_config(options.config), options.seeds)
    run_sweep("compare", plan, options, others, partial(report, split=split))


if __name__ == "__main__":
    run_command(main)
