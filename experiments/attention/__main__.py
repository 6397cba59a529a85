"""Draw where a Mobile-Former attends: the attention between feature map and tokens in each block.

    python -m experiments.attention IMAGE --ckpt runs/…/checkpoints/best.ckpt

For each image, the command writes one picture. The picture shows the attention of each token to the map. It also shows
which token each position of the map attends to most. For the detector E2E-MF, the command writes a second picture with
the boxes after each block of the detection head. The layers that compute the attention are called the bridge, see
:mod:`mobile_former.bridge`.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.attention.figures import draw_boxes, draw_bridge
from experiments.attention.look import load_predictor, look
from experiments.attention.recording import BlockAttention
from mobile_former.errors import InputError
from mobile_former.training.cli.command import exit_if_unreadable, require_writable, run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.data.images import ImageError, expand, read_image


def main() -> None:
    """Draw the attention for the images on the command line, and save the pictures."""
    parser = Parser(prog="python -m experiments.attention", description="Draw the bridge's attention, block by block.")
    parser.add_argument("images", type=str, nargs="+", help="images, folders, or quoted globs")
    parser.add_argument(
        "--ckpt_path", "--ckpt", type=str, required=True, help="checkpoints/best.ckpt of a run of either task"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/attention"), help="folder of the pictures")
    parser.add_argument(
        "--blocks", type=str, nargs="+", default=None, help="blocks to draw, for example backbone3; default: all"
    )
    parser.add_argument("--head", type=int, default=None, help="attention head to draw, 1 or 2; default: their mean")
    parser.add_argument(
        "--score_threshold", type=float, default=0.3, help="minimum score of a detection to draw it, 0 to 1"
    )
    options = parser.parse_args()
    if not 0 <= options.score_threshold <= 1:
        raise InputError(f"--score_threshold is {options.score_threshold}: give a score from 0 to 1")

    paths = expand(options.images)
    names = _picture_names(paths)
    predictor = load_predictor(options.ckpt_path)
    for name in names:  # before the predictions, so that none is lost
        require_writable(options.output / f"{name}-bridge.png")
    errors = []
    for path, name in zip(paths, names, strict=True):
        try:
            image = read_image(path)
        except (ImageError, FileNotFoundError) as error:
            errors.append(str(error))
            continue
        result = look(predictor, image)
        title = f"{path.name}: {result.told(options.score_threshold)}"
        figures = {
            "bridge": draw_bridge(
                result.image,
                _select(result.blocks, options.blocks),
                head=options.head,
                queries=result.queries(options.score_threshold),
                title=title,
            )
        }
        if result.steps:
            figures["boxes"] = draw_boxes(
                result.image, result.steps, result.class_names, score_threshold=options.score_threshold, title=title
            )
        for kind, figure in figures.items():
            target = options.output / f"{name}-{kind}.png"
            figure.savefig(target)
            print(f"written: {target}")
    exit_if_unreadable(errors, len(paths))


def _select(blocks: Sequence[BlockAttention], names: Sequence[str] | None) -> list[BlockAttention]:
    """Return a list of the blocks whose names are in ``names``, or of all blocks if ``names`` is None."""
    known = [block.name for block in blocks]
    for name in names or ():
        if name not in known:
            raise InputError(f"--blocks: the model has no block {name!r}: choose from {', '.join(known)}")
    return [block for block in blocks if names is None or block.name in names]


def _picture_names(paths: Sequence[Path]) -> list[str]:
    """Return a list with one name for each input image. The output files of an image begin with its name.

    The name is the file name of the image without its suffix. If several names are equal except for upper and lower
    case, numbers are appended to them.
    """
    taken: set[str] = set()
    names = []
    for path in paths:
        number = 1
        name = path.stem
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


if __name__ == "__main__":
    run_command(main)
