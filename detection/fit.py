"""``python -m detection.fit``: train a detector."""

from pathlib import Path

from detection.data.module import DetectionData
from detection.module import DetectionModule
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.fit import FitCLI

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    """Parse the command line and train a detector.

    Without ``--config``, the built-in data set of :mod:`detection.data.scenes` (digits on photographs) is used.
    """
    FitCLI(
        "detection",
        DetectionModule,
        DetectionData,
        configs=CONFIGS,
        embedded="scenes.yaml",
        learned_from_data=("class_names", "category_ids"),
    ).fit()


if __name__ == "__main__":
    run_command(main)
