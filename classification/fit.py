"""``python -m classification.fit``: train a classifier."""

from pathlib import Path

from classification.data.module import ClassificationData
from classification.module import ClassificationModule
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.fit import FitCLI

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    """Parse the command line and train a classifier.

    Without ``--config``, scikit-learn's handwritten digits are used.
    """
    FitCLI(
        "classification",
        ClassificationModule,
        ClassificationData,
        configs=CONFIGS,
        embedded="digits.yaml",
        learned_from_data=("class_names", "image_size"),
    ).fit()


if __name__ == "__main__":
    run_command(main)
