"""``python -m classification.digits``: write scikit-learn's handwritten digits as an image folder."""

import cv2

from classification.data.digits import Digits
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import parse_folder_and_limit


def main() -> None:
    """Parse the command line, and write the images of scikit-learn's digits data set to a folder.

    The files are ``FOLDER/{train,val}/<digit>/<number>.png``.
    """
    arguments = parse_folder_and_limit(
        "python -m classification.digits",
        "Write the embedded digits as an image folder.",
        contents="train/ and val/",
        limited="images",
    )
    for split in ("train", "val"):
        digits = Digits(split)
        count = len(digits) if arguments.limit is None else min(arguments.limit, len(digits))
        for index in range(count):
            path = arguments.folder / split / digits.class_names[digits.labels[index]] / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), digits.read(index))
        print(f"{count} images in {arguments.folder / split}/")


if __name__ == "__main__":
    run_command(main)
