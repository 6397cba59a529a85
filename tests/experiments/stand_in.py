"""A sweep with stand-in trainings, for tests of the code that runs trainings: ``python -m tests.experiments.stand_in``.

The options are those of ``experiments.sweep``. ``--heartbeat`` and ``--grace`` (seconds) are the storage's.
"""

import sys


def stand_in_for_fit() -> None:
    """Let sweeps of this process run stand-in trainings."""
    from experiments import runs
    from experiments.sweep import command

    def stand_in(training: runs.Training) -> list[str]:
        location = ["--runs_folder", str(training.folder.path.parent.parent), "--name", training.folder.path.name]
        return [sys.executable, "-m", "tests.experiments.stand_in_training", *training.arguments, *location]

    runs.Training.command = property(stand_in)
    command.require_options = lambda task, arguments: None


if __name__ == "__main__":
    from experiments.sweep import storage, worker
    from experiments.sweep.__main__ import main
    from mobile_former.training.cli.command import run_command

    heartbeat, grace = sys.argv[1:3]
    del sys.argv[1:3]
    storage.HEARTBEAT, storage.GRACE, worker.PAUSE = int(heartbeat), int(grace), 0.1
    stand_in_for_fit()
    run_command(main)
