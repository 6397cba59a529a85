"""Labelled images in WebDataset shards: tar files on a disk or behind a URL, and an index that counts them.

``python -m classification.shard`` writes them. A shard is the unit of transfer: it is read whole and held against the
index's checksum before any of its images is used.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from classification.data.dataset import collate
from mobile_former.errors import InputError
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages
from mobile_former.training.data.images import IMAGE_SUFFIXES, decode_image
from mobile_former.training.data.sampler import Draw, mix_seeds
from mobile_former.whole_file import write_whole

INDEX = "shards.json"
SHUFFLE_BUFFER = 1000  # samples; shards hold theirs in random order already
ATTEMPTS = 3  # at a shard behind a URL, whose transfer may be cut off

_MEND = "copy it again, or write it again by python -m classification.shard"
# What gopen opens by a command without a shell, and pipe:, which is a shell's. Any other name is a folder's.
_URL = re.compile(r"pipe:|(https?|gs|sftp|ftps|scp)://")
# Names become part of paths, URLs and, after pipe:, of a shell's command: an index must not be able to say more.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+/[0-9]+\.tar")


class Shard(NamedTuple):
    """What the index says about a shard."""

    file: str  # <split>/<number>.tar
    samples: int
    bytes: int
    sha256: str


class ShardSample(NamedTuple):
    """An image as it lies in a shard."""

    name: str
    data: bytes
    label: int
    damage: str | None = None  # of the shard in whose place this one's was read


class BatchDraw(NamedTuple):
    """One batch of one epoch."""

    batch: int
    epoch: int


@dataclass
class ShardIndex:
    """Which shards there are, and what is in them.

    Args:
        root: where they lie; see :func:`is_url`.
        class_names: in the order of the labels in the shards.
        splits: the shards of each split.
    """

    root: str
    class_names: list[str]
    splits: dict[str, list[Shard]]

    @classmethod
    def read(cls, root: str) -> "ShardIndex":
        """Read the index of a folder or URL.

        Raises:
            InputError: there is none, or it is not one that ``classification.shard`` writes.
        """
        place = locate(root, INDEX)
        try:
            content = json.loads(fetch(place))
            splits = {split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()}
            index = cls(root, content["class_names"], splits)
            index._check()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise InputError(f"no index of shards (--data.root {root}): {error}") from error
            raise InputError(
                f"{place}: no index of shards ({type(error).__name__}: {error}); write shards by "
                "python -m classification.shard"
            ) from error
        return index

    def write(self) -> None:
        """Write the index into the folder ``root``, whole or not at all."""
        target = Path(self.root) / INDEX
        splits = {split: [shard._asdict() for shard in shards] for split, shards in self.splits.items()}
        content = {"class_names": self.class_names, "splits": splits}
        write_whole(target, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())

    def _check(self) -> None:
        """ValueError for anything that reading would stumble over."""
        if not self.class_names or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(f"class_names are {self.class_names}")
        for split, shards in self.splits.items():
            if not shards:
                raise ValueError(f"{split} has no shards")
            for shard in shards:
                if not _SHARD_NAME.fullmatch(shard.file):
                    raise ValueError(f"a shard's file is called {shard.file!r}, not like train/000000.tar")
                if not (isinstance(shard.samples, int) and shard.samples > 0 and isinstance(shard.bytes, int)):
                    raise ValueError(f"{shard.file} has {shard.samples} samples in {shard.bytes} bytes")


class ShardSource:
    """The images of one split, numbered as they follow each other in its shards.

    Any image can be read by its number, at the price of reading its whole shard; :class:`ShardBatches` holds those that
    it is about to need.

    Args:
        index: of the shards.
        split: one of its splits.
        class_names: the classes in the order of the labels wanted.
        skip_damaged: whether, in place of the samples of a shard that cannot be read, those of the next sound one come.

    Raises:
        InputError: no such split, a class that is not among ``class_names``, or (unless they are skipped) a shard in
            a folder that is missing or has another size.
    """

    def __init__(self, index: ShardIndex, split: str, class_names: Sequence[str], *, skip_damaged: bool = False):
        if split not in index.splits:
            raise InputError(f"{index.root} has no shards of the split {split!r} (it has {', '.join(index.splits)})")
        if unknown := [name for name in index.class_names if name not in class_names]:
            raise InputError(
                f"the shards in {index.root} have the class{'es' * (len(unknown) > 1)} "
                f"{', '.join(map(repr, unknown[:10]))}, which the model has not: train with "
                f"{'them' if len(unknown) > 1 else 'it'}, or write shards of the model's classes"
            )
        self.root = index.root
        self.shards = index.splits[split]
        self.skip_damaged = skip_damaged
        self.first = np.cumsum([0, *(shard.samples for shard in self.shards)])  # number of each shard's first image
        self.held: dict[int, ShardSample] = {}
        self.labels: dict[int, int] = {}  # of the images read last
        self._labels = [class_names.index(name) for name in index.class_names]
        self._last: tuple[int, list[ShardSample]] | None = None  # the last shard that was read for one image
        if not skip_damaged and not is_url(self.root):
            # Whether a whole shard is sound shows when it is read, which may be hours from now.
            for shard in self.shards:
                path = Path(locate(self.root, shard.file))
                _require_size(str(path), shard, path.stat().st_size if path.is_file() else None)

    def __len__(self) -> int:
        return int(self.first[-1])

    def read(self, index: int) -> np.ndarray:
        """The image, ``(H, W, 3)`` uint8 RGB; its label then stands in ``labels``."""
        sample = self._find(index)
        self.labels[index] = sample.label
        return decode_image(sample.data, sample.name)

    def name(self, index: int) -> str:
        """What to call an image in messages."""
        return self._find(index).name

    def leading(self, most: int) -> int:
        """How many images the first shards hold that together hold ``most``: few images of all shards would take as
        long to read as all of them, and shards hold theirs in random order."""
        return int(self.first[np.searchsorted(self.first, min(most, len(self)))])

    def shard_of(self, index: int) -> int:
        """Number of the shard that holds an image."""
        return int(np.searchsorted(self.first, index, side="right")) - 1

    def hold(self, shard: int, indices: Sequence[int]) -> None:
        """Read a shard and keep some of its images at hand.

        Args:
            shard: its number.
            indices: of images in it.

        Raises:
            InputError: it cannot be read, nor, where damaged shards are skipped, any other.
        """
        samples = self._sound(shard)
        for index in indices:
            self.held[index] = samples[(index - int(self.first[shard])) % len(samples)]

    def _find(self, index: int) -> ShardSample:
        if index in self.held:
            return self.held[index]
        shard = self.shard_of(index)
        if self._last is None or self._last[0] != shard:
            self._last = shard, self._sound(shard)
        samples = self._last[1]
        return samples[(index - int(self.first[shard])) % len(samples)]

    def _sound(self, number: int) -> list[ShardSample]:
        """A shard's samples, or, where damaged ones are skipped, those of the next that is sound."""
        damage = None
        for offset in range(len(self.shards)):
            try:
                samples = self._load(self.shards[(number + offset) % len(self.shards)])
            except InputError as error:
                if not self.skip_damaged:
                    raise
                damage = damage or str(error)
                continue
            return samples if damage is None else [sample._replace(damage=damage) for sample in samples]
        raise InputError(f"none of the {len(self.shards)} shards in {self.root} can be read; the first: {damage}")

    def _load(self, shard: Shard) -> list[ShardSample]:
        place = locate(self.root, shard.file)
        attempts = ATTEMPTS if is_url(place) else 1
        for attempt in range(1, attempts + 1):
            try:
                return read_shard(fetch(place), place, shard, self._labels)
            except InputError:
                if attempt == attempts:
                    raise
        raise AssertionError("no attempt was made")


class ShardBatches(Dataset):
    """Batches of an epoch, as lists of samples: one process's share.

    The epoch goes through the shards in an order of its own. Processes share that order out in ranges whose sizes
    differ by one at most, and each cuts its range into as many lanes as it has workers: a lane is read by one worker,
    shuffled within a buffer, and gives the batches ``lane``, ``lane + lanes``, …, so that nothing is read twice but
    shards that lie across a border. What is in a batch follows from seed, epoch, numbers of processes and lanes, and
    batch size, not from who makes it or what was made before; with other numbers of workers than of lanes all that
    changes is how often a shard is read.

    In training all processes have the same number of batches, of sizes that differ by one at most. Every sample comes
    once an epoch; only where a process would have an empty batch (a batch size of 1 and a number of samples that the
    processes do not divide, or fewer samples than processes), one of its neighbour's fills it.

    Args:
        images: over a :class:`ShardSource`.
        batch_size: largest number of samples in a batch.
        lanes: see above.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self, images: TrainingImages | EvaluationImages, *, batch_size: int, lanes: int, rank: int, world_size: int
    ):
        self.images = images
        self.lanes = lanes
        self.rank = rank
        self.seed = images.seed if isinstance(images, TrainingImages) else None
        total = len(images)
        first, end = (total * process // world_size for process in (rank, rank + 1))
        if self.seed is None:
            count = -(-(end - first) // batch_size)
        else:
            count = -(-total // (world_size * batch_size))
            end = max(end, first + count)
        self.range = range(first, end)
        edges = np.array([len(self.range) * batch // max(1, count) for batch in range(count + 1)])
        self.sizes = np.diff(edges)
        self._plans: dict[int, np.ndarray] = {}  # by lane, of the epoch at hand
        self._epoch = -1

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, draw: BatchDraw) -> list[dict]:
        if draw.epoch != self._epoch:
            self._plans.clear()
            self.images.source.held.clear()
            self._epoch = draw.epoch
        lane = draw.batch % self.lanes
        if lane not in self._plans:
            self._plans[lane] = self.plan(lane, draw.epoch)
        begin = int(self.sizes[lane : draw.batch : self.lanes].sum())
        return self._samples(self._plans[lane][begin:], int(self.sizes[draw.batch]), draw.epoch)

    def plan(self, lane: int, epoch: int) -> np.ndarray:
        """Numbers of a lane's images in the order in which an epoch has them."""
        source = self.images.source
        order = np.arange(len(source.shards))
        if self.seed is not None:
            order = np.random.default_rng(mix_seeds(self.seed, epoch)).permutation(order)
        sizes = [int(self.sizes[number :: self.lanes].sum()) for number in range(self.lanes)]
        begin = self.range.start + sum(sizes[:lane])
        positions = np.arange(begin, begin + sizes[lane]) % len(source)
        starts = np.cumsum([0, *(source.shards[shard].samples for shard in order)])
        turns = np.searchsorted(starts, positions, side="right") - 1
        indices = source.first[order[turns]] + positions - starts[turns]
        if self.seed is None:
            return indices
        generator = np.random.default_rng(mix_seeds(self.seed, epoch, self.rank, lane))
        return indices[_buffer_shuffle(len(indices), generator)]

    def _samples(self, ahead: np.ndarray, size: int, epoch: int) -> list[dict]:
        """The first ``size`` of the images that a lane has ahead of it."""
        source, samples = self.images.source, []
        for index in ahead[:size].tolist():
            if index not in source.held:
                shard = source.shard_of(index)
                within = (source.first[shard] <= ahead) & (ahead < source.first[shard + 1])
                try:
                    source.hold(shard, ahead[within].tolist())
                except InputError as error:
                    return [{"failures": [], "error": str(error)}]
            sample = self.images[index if self.seed is None else Draw(index, epoch)]
            samples.append(sample | {"damage": source.held[index].damage})
        for index in ahead[:size].tolist():
            source.held.pop(index, None)
        source.labels.clear()
        return samples


class ShardSampler(Sampler[BatchDraw]):
    """The batches of an epoch one after the other. Lightning tells the epoch by :meth:`set_epoch`.

    The epoch travels to the workers with each batch's number, so that workers that persist know it too.

    Args:
        size: number of batches in an epoch.
        first: the batch to begin with, in its own epoch; those before it are trained already.
    """

    def __init__(self, size: int, first: BatchDraw):
        self.size = size
        self.first = first
        self.epoch = first.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[BatchDraw]:
        begin = self.first.batch if self.epoch == self.first.epoch else 0
        for batch in range(begin, self.size):
            yield BatchDraw(batch, self.epoch)

    def __len__(self) -> int:
        return self.size


def collate_shards(samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
    """The batch of :func:`collate`, and ``damages``, messages about shards in whose place others were read."""
    return collate(samples) | {"damages": sorted({sample["damage"] for sample in samples if sample.get("damage")})}


def is_url(root: str) -> bool:
    """Whether a place is a URL or ``pipe:`` and a command, and not a folder."""
    return _URL.match(root) is not None


def holds_shards(root: str) -> bool:
    """Whether a place is one of shards: any URL, and a folder with an index in it."""
    return is_url(root) or (Path(root) / INDEX).is_file()


def locate(root: str, file: str) -> str:
    """Path or URL of a file; in a URL it takes the place of ``{}``, or follows at the end."""
    if not is_url(root):
        return str(Path(root) / file)
    return root.replace("{}", file) if "{}" in root else f"{root.rstrip('/')}/{file}"


def fetch(place: str) -> bytes:
    """All bytes of a file or URL.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if not is_url(place):
            return Path(place).read_bytes()
        from webdataset.gopen import gopen  # a second's import, which nothing else needs

        with gopen(place) as stream:
            return stream.read()
    except (OSError, ValueError, ImportError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"{place}: cannot be read ({reason}); check --data.root, and whether all was copied"
        ) from error


def read_shard(content: bytes, place: str, shard: Shard, labels: Sequence[int]) -> list[ShardSample]:
    """The samples of a shard, in its order.

    Args:
        content: its bytes.
        place: what to call it in messages.
        shard: what the index says about it.
        labels: for each of the shards' labels the one wanted.

    Raises:
        InputError: it is not what the index says, or no shard of labelled images.
    """
    _require_size(place, shard, len(content))
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise InputError(f"{place}: damaged, as its bytes do not give the checksum in the index; {_MEND}")
    samples = list(unpack(content, place))
    if len(samples) != shard.samples:
        raise InputError(f"{place}: holds {len(samples)} samples where the index says {shard.samples}; {_MEND}")
    if wrong := [sample for sample in samples if not 0 <= sample.label < len(labels)]:
        raise InputError(f"{wrong[0].name}: label {wrong[0].label}, and the index has {len(labels)} classes; {_MEND}")
    return [sample._replace(label=labels[sample.label]) for sample in samples]


def unpack(content: bytes, place: str) -> Iterator[ShardSample]:
    """The samples in the bytes of a tar file.

    Args:
        content: the tar file.
        place: what to call it in messages.

    Raises:
        InputError: it is none, or one without images and labels.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        for sample in group_by_keys(tar_file_expander([{"url": place, "stream": io.BytesIO(content)}])):
            (suffix,) = (name for name in sample if f".{name}" in IMAGE_SUFFIXES)
            yield ShardSample(f"{place}: {sample['__key__']}.{suffix}", sample[suffix], int(sample["cls"]))
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(
            f"{place}: no shard of images, each with a .cls ({type(error).__name__}: {error}); {_MEND}"
        ) from error


def _require_size(place: str, shard: Shard, size: int | None) -> None:
    if size is None:
        raise InputError(f"{place}: missing, and the index names it; {_MEND}")
    if size != shard.bytes:
        how = "cut short" if size < shard.bytes else "too long"
        raise InputError(f"{place}: {how}, with {size} bytes where the index says {shard.bytes}; {_MEND}")


def _buffer_shuffle(count: int, generator: np.random.Generator) -> list[int]:
    """0, …, count - 1, each drawn from a buffer that is filled in their order."""
    buffer = list(range(min(SHUFFLE_BUFFER, count)))
    order = []
    for place, following in zip(
        generator.integers(SHUFFLE_BUFFER, size=count - len(buffer)).tolist(), range(len(buffer), count), strict=True
    ):
        order.append(buffer[place])
        buffer[place] = following
    return order + generator.permutation(buffer).tolist()
