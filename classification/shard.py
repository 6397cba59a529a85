"""``python -m classification.shard``: write an image folder as WebDataset shards, which are tar files."""

from pathlib import Path

from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.processors import default_workers, limit_threads

MEGABYTES = 64  # size of a shard: long reads for disk and network, but little memory per loading process


def main() -> None:
    """Parse the command line, and write the shards and the index file that lists them."""
    parser = Parser(prog="python -m classification.shard", description="Write an image folder as WebDataset shards.")
    parser.add_argument("folder", type=Path, help="folder with train/<class>/*, val/<class>/*, optional test/<class>/*")
    parser.add_argument("output", type=Path, help="folder to write: train/000000.tar, …, and shards.json")
    parser.add_argument("--shard_megabytes", type=float, default=MEGABYTES, help="size of a shard in 10^6 bytes")
    parser.add_argument("--shard_samples", type=int | None, default=None, help="images per shard, instead of a size")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order of the images")
    parser.add_argument("--workers", type=int, default=default_workers(), help="number of writing processes")
    parser.add_argument("--skip_unreadable", type=bool, default=False, help="leave out images that cannot be read")
    options = parser.parse_args()
    if options.shard_megabytes <= 0:
        raise InputError(f"--shard_megabytes is {options.shard_megabytes}: give more than 0")
    for name in ("shard_samples", "workers"):
        if options[name] is not None and options[name] < 1:
            raise InputError(f"--{name} is {options[name]}: give at least 1")
    if options.seed < 0:
        raise InputError(f"--seed is {options.seed}: give 0 or more")
    if options.output.resolve().is_relative_to(options.folder.resolve()):
        raise InputError(f"the output {options.output} is inside {options.folder}: give a folder outside it")

    # Imported here, because these modules import PyTorch, which --help need not wait for.
    from classification.data.image_folder import ImageFolder, list_classes
    from classification.data.shard_writing import plan_shards, write_shards
    from mobile_former.training.data.splits import SPLITS, split_folders

    limit_threads()
    class_names = list_classes(options.folder, "train")
    jobs = {
        split: plan_shards(
            ImageFolder(options.folder, split, class_names),
            options.output / split,
            seed=options.seed,
            size=int(options.shard_megabytes * 1e6),
            samples=options.shard_samples,
            skip_unreadable=options.skip_unreadable,
        )
        for split in SPLITS
        if split != "test" or split in split_folders(options.folder)
    }
    write_shards(options.output, class_names, jobs, workers=options.workers)


if __name__ == "__main__":
    run_command(main)
