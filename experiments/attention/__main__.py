"""See the bridge: where each token looks, and which token each place listens to, block by block.

    python -m experiments.attention IMAGE --ckpt runs/…/checkpoints/best.ckpt

For each image a picture of the bridge's attention and, for E2E-MF, one of the boxes after each of its blocks. In a
notebook: :func:`bridge_attention`, :func:`draw_bridge`, :func:`box_steps`, :func:`draw_boxes`.
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.attention.figures import draw_boxes, draw_bridge
from experiments.attention.look import load_predictor, look
from experiments.attention.recording import BlockAttention
from mobile_former.errors import InputError
from mobile_former.training.cli.command import Parser, require_writable, run_command, tell_unreadable
from mobile_former.training.data.images import ImageError, expand, read_image


def main() -> None:
    """Draw by the command line's options."""
    parser = Parser(prog="python -m experiments.attention", description="Draw the bridge's attention, block by block.")
    parser.add_argument("images", type=str, nargs="+", help="images, folders, or quoted globs")
    parser.add_argument(
        "--ckpt_path", "--ckpt", type=str, required=True, help="a run's checkpoints/best.ckpt, of either task"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/attention"), help="a folder for the pictures")
    parser.add_argument(
        "--blocks", type=str, nargs="+", default=None, help="the blocks to draw, such as backbone3; default: all"
    )
    parser.add_argument("--head", type=int, default=None, help="the head to draw, 1 or 2; default: their mean")
    parser.add_argument(
        "--score_threshold", type=float, default=0.3, help="least score of a detection that is drawn, 0 to 1"
    )
    options = parser.parse_args()
    if not 0 <= options.score_threshold <= 1:
        raise InputError(f"--score_threshold is {options.score_threshold}: give a score from 0 to 1")

    paths = expand(options.images)
    names = _names(paths)
    predictor = load_predictor(options.ckpt_path)
    for name in names:  # before the work, so that none is lost
        require_writable(options.output / f"{name}-bridge.png")
    errors = []
    for path, name in zip(paths, names, strict=True):
        try:
            image = read_image(path)
        except (ImageError, FileNotFoundError) as error:
            errors.append(str(error))
            continue
        seen = look(predictor, image)
        title = f"{path.name}: {seen.told(options.score_threshold)}"
        figures = {
            "bridge": draw_bridge(
                seen.image,
                _chosen(seen.blocks, options.blocks),
                head=options.head,
                queries=seen.queries(options.score_threshold),
                title=title,
            )
        }
        if seen.steps:
            figures["boxes"] = draw_boxes(
                seen.image, seen.steps, seen.class_names, score_threshold=options.score_threshold, title=title
            )
        for kind, figure in figures.items():
            target = options.output / f"{name}-{kind}.png"
            figure.savefig(target)
            print(f"written: {target}")
    tell_unreadable(errors, len(paths))


def _chosen(blocks: Sequence[BlockAttention], names: Sequence[str] | None) -> list[BlockAttention]:
    known = [block.name for block in blocks]
    strange = [name for name in names or () if name not in known]
    if strange:
        raise InputError(f"--blocks: the model has no {strange[0]!r}, but {', '.join(known)}")
    return [block for block in blocks if names is None or block.name in names]


def _names(paths: Sequence[Path]) -> list[str]:
    """For each image what its pictures' names begin with: that of the file, with a number where several have it."""
    taken: set[str] = set()
    names = []
    for path in paths:
        number = 1
        name = path.stem
        while name.casefold() in taken:  # not every file system tells A from a
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


if __name__ == "__main__":
    run_command(main)
