"""``python -m classification.fit``: train a classifier."""

from pathlib import Path

from classification.data.module import ClassificationData
from classification.module import ClassificationModule
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.fit import FitCLI

CONFIGS = Path(__file__).parent / "configs"


def main() -> None:
    """Train with the options and configs on the command line. Without a config, train on scikit-learn's digits."""
    FitCLI("classification", ClassificationModule, ClassificationData, configs=CONFIGS, embedded="digits.yaml").fit()


if __name__ == "__main__":
    run_command(main)
