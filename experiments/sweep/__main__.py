"""Search for good values of ``fit`` options with Optuna, or train every combination of a grid.

    python -m experiments.sweep --config experiments/configs/sweep_classification.yaml --data.root DIR --workers 2

A trial is one training run. The config names the task, one of the task's training configs, the options of all trials,
and the search space. Any other command-line option is passed to every trial. Run the same command again to continue an
interrupted sweep. To add workers, run the same command on other machines, with the same --storage.
"""

from experiments.options import find_config, trainings_parser
from mobile_former.training.cli.command import run_command
from mobile_former.training.extras import import_extra


def main() -> None:
    """Run the trials of a sweep, then write the report."""
    parser = trainings_parser("sweep", __doc__, config="the sweep, see experiments/configs/sweep_*.yaml", each="trial")
    parser.add_argument("--trials", type=int, help="number of trials; a grid runs its first ones (default: config's)")
    options, others = parser.parse_known_args()
    import_extra("optuna", "sweep", "a sweep needs Optuna")
    from experiments.sweep.command import run_sweep
    from experiments.sweep.plan import read_plan
    from experiments.sweep.report import report

    run_sweep("sweep", read_plan(find_config(options.config), options.trials), options, others, report)


if __name__ == "__main__":
    run_command(main)
