"""``python -m detection.scenes``: write the built-in detection data set in COCO format.

The data set shows handwritten digits on photographs, see :mod:`detection.data.scenes`.
"""

from detection.data.scenes import COUNTS, write_coco
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import parse_folder_and_limit


def main() -> None:
    """Parse the command line, and write the built-in detection data set to a folder, in COCO format."""
    arguments = parse_folder_and_limit(
        "python -m detection.scenes",
        "Write the embedded scenes in COCO's format.",
        contents="annotations/ and images/",
        limited="scenes",
    )
    for split, count in COUNTS.items():
        count = count if arguments.limit is None else min(arguments.limit, count)
        write_coco(arguments.folder, split, count)
        print(f"{count} {split} scenes in {arguments.folder}/")


if __name__ == "__main__":
    run_command(main)
