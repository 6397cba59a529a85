"""Read labelled images from WebDataset shards, which are tar files in a folder or at a URL.

``python -m classification.shard`` writes the shards and an index file that lists them. A shard is always read as a
whole. Its checksum is compared with the index file before any of its images is used.
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
SHUFFLE_BUFFER = 1000  # samples; their order within a shard is already random
ATTEMPTS = 3  # attempts to read a shard at a URL, because a transfer can be interrupted

_REMEDY = "copy it again, or write it again with python -m classification.shard"
# webdataset's gopen opens these by running a command, for pipe: in a shell. Any other root is a folder.
_URL = re.compile(r"pipe:|(https?|gs|sftp|ftps|scp)://")
# An index must not contain other names: they become part of paths, URLs and, after pipe:, of shell commands.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+/[0-9]+\.tar")


class Shard(NamedTuple):
    """Entry of the index file for one shard: file name, number of samples, size in bytes and checksum."""

    file: str  # <split>/<number>.tar
    samples: int  # number of samples
    bytes: int  # size of the file
    sha256: str  # checksum of the file


class ShardSample(NamedTuple):
    """An encoded image of a shard, such as the bytes of a JPEG file, with its name and label.

    If a shard is damaged, images of another shard can replace its images. For such a replacement image, ``damage`` is
    the error message about the damaged shard. For all other images, it is None.
    """

    name: str
    data: bytes
    label: int
    damage: str | None = None  # if this sample's shard replaces a damaged shard: message about that shard


class BatchDraw(NamedTuple):
    """Position of a batch: index of the batch in its epoch, and index of the epoch. Both start at 0."""

    batch: int
    epoch: int


@dataclass(frozen=True)
class ShardIndex:
    """List of the shards of a data set, stored in an index file.

    Attributes:
        root: folder of the shards, or a URL or ``pipe:`` command that they are read from, see :func:`locate`.
        class_names: names of the classes in the order of the labels in the shards.
        splits: dictionary from the name of a split to the list of its shards.

    Raises:
        ValueError: there are no class names, a split has no shards, or the index entry of a shard is invalid.
    """

    root: str
    class_names: list[str]
    splits: dict[str, list[Shard]]

    def __post_init__(self):
        if not self.class_names or not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(f"class_names are {self.class_names}")
        for split, shards in self.splits.items():
            if not shards:
                raise ValueError(f"{split} has no shards")
            for shard in shards:
                if not _SHARD_NAME.fullmatch(shard.file):
                    raise ValueError(f"the file of a shard is named {shard.file!r}, not like train/000000.tar")
                if not (isinstance(shard.samples, int) and shard.samples > 0 and isinstance(shard.bytes, int)):
                    raise ValueError(f"{shard.file} has {shard.samples} samples in {shard.bytes} bytes")

    @classmethod
    def read(cls, root: str) -> "ShardIndex":
        """Read the index file from a folder, URL or ``pipe:`` command.

        Raises:
            InputError: the file cannot be read, or ``classification.shard`` did not write it.
        """
        place = locate(root, INDEX)
        try:
            content = json.loads(fetch(place))
            splits = {split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()}
            return cls(root, content["class_names"], splits)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InputError):
                raise InputError(f"no index of shards (--data.root {root}): {error}") from error
            raise InputError(
                f"{place}: no index of shards ({type(error).__name__}: {error}); write shards with "
                "python -m classification.shard"
            ) from error

    def write(self) -> None:
        """Write the index file into the folder ``root``. If the process is interrupted, no partial file remains."""
        target = Path(self.root) / INDEX
        splits = {split: [shard._asdict() for shard in shards] for split, shards in self.splits.items()}
        content = {"class_names": self.class_names, "splits": splits}
        write_whole(target, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


class ShardSource:
    """Images of one split of a sharded data set, numbered from 0 in the order of the shards.

    A shard can only be read as a whole. :class:`ShardBatches` therefore calls :meth:`hold`, which reads a shard and
    keeps in memory the images that the next batches need.

    Args:
        index: content of the data set's index file, which lists all shards.
        split: name of the split.
        class_names: class names of the model. The label of an image is the position of its class name in this sequence.
        skip_damaged: whether to use the samples of the next undamaged shard if a shard is damaged. If False, a damaged
            shard is an error.

    Attributes:
        first: number of the first image of each shard, followed by the total number of images.
        held: dictionary from the number of an image to its sample, for the images in memory.
        labels: dictionary from the number of an image to its label, for the images that were read.
            :class:`ShardBatches` empties this dictionary after each batch.

    Raises:
        InputError: the split does not exist, a class is not in ``class_names``, or a shard file is missing or has the
            wrong size. Existence and size of the shard files are checked only if they are in a folder and
            ``skip_damaged`` is False.
    """

    def __init__(self, index: ShardIndex, split: str, class_names: Sequence[str], *, skip_damaged: bool = False):
        if split not in index.splits:
            raise InputError(f"{index.root} has no shards of the split {split!r} (it has {', '.join(index.splits)})")
        if unknown := [name for name in index.class_names if name not in class_names]:
            raise InputError(
                f"the shards in {index.root} have the class{'es' * (len(unknown) > 1)} "
                f"{', '.join(map(repr, unknown[:10]))}, which the model does not have: train with "
                f"{'them' if len(unknown) > 1 else 'it'}, or write shards with the classes of the model"
            )
        self.root = index.root
        self.shards = index.splits[split]
        self.skip_damaged = skip_damaged
        self.first = np.cumsum([0, *(shard.samples for shard in self.shards)])
        self.held: dict[int, ShardSample] = {}
        self.labels: dict[int, int] = {}
        self._labels = [class_names.index(name) for name in index.class_names]
        self._last: tuple[int, list[ShardSample]] | None = None  # number and samples of the last shard that was read
        if not skip_damaged and not is_url(self.root):
            # Reports missing and incomplete shards now. A shard is read and fully checked only when it is needed.
            for shard in self.shards:
                path = Path(locate(self.root, shard.file))
                _require_size(str(path), shard, path.stat().st_size if path.is_file() else None)

    def __len__(self) -> int:
        return int(self.first[-1])

    def read(self, index: int) -> np.ndarray:
        """Return image ``index`` as ``(H, W, 3)`` uint8 RGB, and store its label in ``self.labels[index]``."""
        sample = self._find(index)
        self.labels[index] = sample.label
        return decode_image(sample.data, sample.name)

    def name(self, index: int) -> str:
        """Return a text that identifies an image in messages: path or URL of its shard, and name in the shard."""
        return self._find(index).name

    def leading(self, most: int) -> int:
        """Return the number of images in the first n shards, for the smallest n that gives at least ``most`` images.

        If the split has fewer images, return the number of images in the split. Code that needs only ``most`` images of
        a split can choose them from these first shards, because the images of a split are in random order. Reading a
        few images of every shard would take as long as reading the whole split.
        """
        return int(self.first[np.searchsorted(self.first, min(most, len(self)))])

    def shard_of(self, index: int) -> int:
        """Return the index of the shard that contains image number ``index``."""
        return int(np.searchsorted(self.first, index, side="right")) - 1

    def hold(self, shard: int, indices: Sequence[int]) -> None:
        """Read a shard, and keep the images with the given indices in memory.

        If the shard is damaged and ``skip_damaged`` is set, images of the next undamaged shard are kept instead.

        Args:
            shard: index of the shard.
            indices: indices of the images to keep. All of these images must be in the shard.

        Raises:
            InputError: the shard is damaged. If ``skip_damaged`` is set, this error is raised only if all shards are
                damaged.
        """
        samples = self._read_undamaged(shard)
        for index in indices:
            self.held[index] = samples[(index - int(self.first[shard])) % len(samples)]

    def _find(self, index: int) -> ShardSample:
        if index in self.held:
            return self.held[index]
        shard = self.shard_of(index)
        if self._last is None or self._last[0] != shard:
            self._last = shard, self._read_undamaged(shard)
        samples = self._last[1]
        return samples[(index - int(self.first[shard])) % len(samples)]

    def _read_undamaged(self, number: int) -> list[ShardSample]:
        """Read a shard and return a list of its samples.

        If the shard is damaged and ``skip_damaged`` is set, read the next undamaged shard instead.
        """
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
        while True:
            attempts -= 1
            try:
                return read_shard(fetch(place), place, shard, self._labels)
            except InputError:
                if not attempts:
                    raise


class ShardBatches(Dataset):
    """Data set of the batches of one process. It is indexed by :class:`BatchDraw`, and returns a list of samples.

    In training, each epoch shuffles the shards. The images of the shuffled shards are divided into consecutive ranges,
    one range per process. The sizes of the ranges differ by at most one. Each process divides its range into
    consecutive parts called lanes, normally one per loading worker. The images of a lane are shuffled with a shuffle
    buffer. In evaluation, nothing is shuffled.

    With ``n`` lanes, the images of lane ``k`` fill the batches ``k``, ``k + n``, ``k + 2n``, …, and one worker loads
    all of these batches. A shard is read more than once only if it crosses the border of a range or lane.

    A batch depends only on the seed, the epoch, the batch size, the number of processes and the number of lanes. It
    does not depend on the worker or on earlier batches. If the number of workers differs from the number of lanes, the
    batches stay the same. Only the number of times that a shard is read changes.

    In training, all processes have the same number of batches. The sizes of the batches differ by at most one. Each
    sample occurs once per epoch, with one exception: if a process has fewer samples than batches, it also takes the
    first sample of the next process. This happens in two cases: the batch size is 1 and the number of samples is not a
    multiple of the number of processes, or there are fewer samples than processes.

    Args:
        images: data set of single images, for training or evaluation. Its source is a :class:`ShardSource`.
        batch_size: maximum number of samples per batch.
        lanes: number of lanes.
        rank: index of this process.
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
        self._plans: dict[int, np.ndarray] = {}  # plans of the current epoch, by lane
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
        """Return the indices of the images in a lane, in the order in which they are used in an epoch.

        The images of each process are divided into parts called lanes, normally one per loading worker, see
        :class:`ShardBatches`.

        Args:
            lane: index of the lane.
            epoch: index of the epoch.
        """
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
        """Return a list with the samples of one batch: the first ``size`` images in ``ahead``.

        ``ahead`` contains the indices of all images of a lane that are not in earlier batches. A lane is a part of the
        images of this process, see :class:`ShardBatches`. If a shard cannot be read, the list contains only one
        dictionary with the error message.
        """
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
    """Sampler that yields the position (:class:`BatchDraw`) of each batch of an epoch, in order.

    Lightning calls :meth:`set_epoch` before each epoch. Each position contains the index of the epoch, because loading
    workers can live for several epochs and have no other access to this index.

    Args:
        size: number of batches per epoch.
        first: position of the batch at which the run starts or resumes. Earlier batches of this epoch are skipped.
            Later epochs begin at batch 0.
    """

    def __init__(self, size: int, first: BatchDraw):
        self.size = size
        self.first = first
        self.epoch = first.epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the index of the epoch for the next iteration. The first epoch is 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[BatchDraw]:
        begin = self.first.batch if self.epoch == self.first.epoch else 0
        for batch in range(begin, self.size):
            yield BatchDraw(batch, self.epoch)

    def __len__(self) -> int:
        return self.size


def collate_shards(samples: list[dict]) -> dict[str, torch.Tensor | list[str]]:
    """Build a batch (a dictionary) with :func:`collate`, and add the entry ``damages``.

    ``damages`` is a sorted list of error messages, one for each damaged shard whose samples were replaced by samples of
    another shard in this batch.
    """
    return collate(samples) | {"damages": sorted({sample["damage"] for sample in samples if sample.get("damage")})}


def is_url(root: str) -> bool:
    """Return True if ``root`` is a URL or a ``pipe:`` command, and False if it is the path of a folder."""
    return _URL.match(root) is not None


def holds_shards(root: str) -> bool:
    """Return whether the data at ``root`` consists of shards.

    The result is True for any URL or ``pipe:`` command, and for a folder with an index file of shards.
    """
    return is_url(root) or (Path(root) / INDEX).is_file()


def locate(root: str, file: str) -> str:
    """Return the location of the data file named ``file``: a path, a URL or a ``pipe:`` command.

    If ``root`` is a folder, this is the path of the file in the folder. If ``root`` is a URL or ``pipe:`` command,
    ``{}`` in it is replaced by the name of the file. If it has no ``{}``, a slash and the name are appended.
    """
    if not is_url(root):
        return str(Path(root) / file)
    return root.replace("{}", file) if "{}" in root else f"{root.rstrip('/')}/{file}"


def fetch(place: str) -> bytes:
    """Return the bytes of a file, of the response to a URL, or of the output of a ``pipe:`` command.

    Args:
        place: path, URL or ``pipe:`` command.

    Raises:
        InputError: ``place`` cannot be read.
    """
    try:
        if not is_url(place):
            return Path(place).read_bytes()
        from webdataset.gopen import gopen  # here, because the import takes a second

        with gopen(place) as stream:
            return stream.read()
    except (OSError, ValueError, ImportError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"{place}: cannot be read ({reason}); check --data.root, and that all files were copied"
        ) from error


def read_shard(content: bytes, place: str, shard: Shard, labels: Sequence[int]) -> list[ShardSample]:
    """Check a shard against the index file, and return the list of its samples.

    The returned samples have the labels of the model. The shard itself may number the classes differently.

    Args:
        content: bytes of the tar file.
        place: path or URL of the file, for messages.
        shard: entry of the index file for the shard.
        labels: list that maps a label in the shard to the label of the same class in the model.

    Raises:
        InputError: the shard does not agree with the index file, or ``content`` is not a tar file of labelled images.
    """
    _require_size(place, shard, len(content))
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise InputError(f"{place}: damaged, since its checksum differs from the index; {_REMEDY}")
    samples = list(unpack(content, place))
    if len(samples) != shard.samples:
        raise InputError(f"{place}: contains {len(samples)} samples, but the index says {shard.samples}; {_REMEDY}")
    if wrong := [sample for sample in samples if not 0 <= sample.label < len(labels)]:
        raise InputError(f"{wrong[0].name}: label {wrong[0].label}, but the index has {len(labels)} classes; {_REMEDY}")
    return [sample._replace(label=labels[sample.label]) for sample in samples]


def unpack(content: bytes, place: str) -> Iterator[ShardSample]:
    """Yield the samples in the tar file of a shard, each as a :class:`ShardSample`.

    Args:
        content: bytes of the tar file.
        place: path or URL of the file, for messages.

    Raises:
        InputError: the content is not a tar file, or a sample has no image or label.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        for sample in group_by_keys(tar_file_expander([{"url": place, "stream": io.BytesIO(content)}])):
            (suffix,) = (name for name in sample if f".{name}" in IMAGE_SUFFIXES)
            yield ShardSample(f"{place}: {sample['__key__']}.{suffix}", sample[suffix], int(sample["cls"]))
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(
            f"{place}: not a shard of images with a .cls each ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error


def _require_size(place: str, shard: Shard, size: int | None) -> None:
    if size is None:
        raise InputError(f"{place}: missing, although the index lists it; {_REMEDY}")
    if size != shard.bytes:
        how = "cut short" if size < shard.bytes else "too long"
        raise InputError(f"{place}: {how}, has {size} bytes, but the index says {shard.bytes}; {_REMEDY}")


def _buffer_shuffle(count: int, generator: np.random.Generator) -> list[int]:
    """Shuffle the numbers 0, …, ``count - 1`` with a shuffle buffer, and return them as a list.

    A buffer first holds the numbers 0 to 999, or all if there are fewer. In each step, a random number is moved from
    the buffer to the list, and the next number that was not yet in the buffer takes its place.
    """
    buffer = list(range(min(SHUFFLE_BUFFER, count)))
    order = []
    for place, following in zip(
        generator.integers(SHUFFLE_BUFFER, size=count - len(buffer)).tolist(), range(len(buffer), count), strict=True
    ):
        order.append(buffer[place])
        buffer[place] = following
    return order + generator.permutation(buffer).tolist()
