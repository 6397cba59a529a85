"""Base class of the data modules.

The class builds the data loaders, handles unreadable images, and saves the position within an epoch in checkpoints.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from multiprocessing.queues import Queue
from pathlib import Path

import cv2
import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader, Sampler

from mobile_former.errors import InputError
from mobile_former.training.data.dataset import EvaluationImages, TrainingImages, indices_to_look_at
from mobile_former.training.data.images import normalise
from mobile_former.training.data.sampler import (
    Draw,
    EpochSampler,
    EvaluationSampler,
    ResumedBatchSampler,
    rank_and_world_size,
)
from mobile_former.training.data.splits import HoldOut, groups_of, read_split, same_files, write_split
from mobile_former.training.data.timed_loader import TimedLoader
from mobile_former.training.processors import default_workers

_logger = logging.getLogger(__name__)


class ImageData(LightningDataModule):
    """Base class of the data modules for classification and detection.

    A subclass saves ``batch_size``, ``mean`` and ``std`` as hyperparameters. Its ``setup`` sets ``train_set``,
    ``val_set`` and ``test_set``. A subclass also has the following members:

    - ``dataset_name``: name of the data set;
    - ``training_options``: dictionary with the options that only training uses, for the trackers;
    - ``training_classes()``: return the list of class names;
    - ``describe()``: return a description of the data in one line;
    - ``draw_augmented(path)``: write a picture of augmented training images.

    Args:
        root: data folder. None: embedded data, made from scikit-learn's digits.
        batch_size: number of images in a batch of one process.
        num_workers: number of loading processes. None: number of cores minus one, but at least 1 and at most 16. For
            embedded data, None means 0, because embedded images are generated faster than they are sent between
            processes.
        std: standard deviation of each channel, in 0..1. The constructor only checks that it is above 0.
        collate: function that builds a batch from samples.
        hold_out: options for choosing validation images among the training images. They are used if the data has no
            validation split, or if :attr:`HoldOut.is_asked_for` is True.
        groups: path of a CSV file with the group of each image. Either all images of a group are held out, or none.
            None: groups.csv in ``root`` if it exists.

    Raises:
        InputError: a value is out of range.
    """

    train_set: TrainingImages
    val_set: EvaluationImages
    test_set: EvaluationImages

    def __init__(
        self,
        *,
        root: Path | None,
        batch_size: int,
        num_workers: int | None,
        std: tuple[float, float, float],
        collate: Callable[[list[dict]], dict],
        hold_out: HoldOut,
        groups: str | None,
    ):
        super().__init__()
        if batch_size < 1:
            raise InputError(f"--data.batch_size is {batch_size}: give at least 1")
        if num_workers is not None and num_workers < 0:
            raise InputError(f"--data.num_workers is {num_workers}: give 0 (load in the main process) or more")
        if min(std) <= 0:
            raise InputError(f"--data.std is {list(std)}: give three numbers above 0")
        self.root = root
        self.num_workers = num_workers if num_workers is not None else 0 if root is None else default_workers()
        self.collate = collate
        self.hold_out = hold_out
        self.groups = groups
        self._known_split: Path | None = None  # the split of an earlier run, which is used again
        self._new_split: Path | None = None  # where this run writes its split
        self._only_known = False
        self._class_names: list[str] | None = None
        self.skipped: set[str] = set()  # messages of training images that could not be read
        self.first_epoch = 0  # first epoch of the next fit; above 0 in a resumed run
        self.first_batch = 0  # first batch of that epoch
        self.split_text = ""  # how validation images were held out; empty if the data has validation images

    @property
    def class_names(self) -> list[str]:
        """List of class names in the order of the class indices.

        Unless other names were set, these are the names of the classes in the training data.
        """
        if self._class_names is None:
            self._class_names = self.training_classes()
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str]) -> None:
        self._class_names = list(names)

    def samples_to_draw(self, most: int) -> list[dict]:
        """Return a list of training samples for a picture.

        The samples are evenly spaced over the data and augmented as in the first epoch.

        Args:
            most: maximum number of samples.

        Raises:
            InputError: a sample cannot be built.
        """
        samples = [self.train_set[Draw(index, 0)] for index in indices_to_look_at(self.train_set.source, most)]
        for sample in samples:
            if "error" in sample:
                raise InputError(sample["error"])
        return samples

    def skipped_counts(self) -> dict[str, int]:
        """Return a dictionary with the number of unreadable training images, under the key ``"skipped_images"``.

        The number counts the images that were skipped in any process. All processes must call this method.
        """
        return {"skipped_images": len(over_processes(self.skipped))}

    def notes(self) -> list[str]:
        """Return a list of lines about the data, such as how the validation images were chosen."""
        return [f"split  {self.split_text}"] if self.split_text else []

    def keep_split(self, new: Path | None, known: Path | None, *, only_known: bool = False) -> None:
        """Set the files with the names of the training and validation images. Call it before :meth:`setup`.

        Args:
            new: file to write if validation images are held out. None: no file is written.
            known: file that an earlier run has written. The validation images that it lists are held out again. If
                ``known`` is None, or lists other images than those of the data, new validation images are chosen.
            only_known: True if the data is possibly not the training data. No new validation images are then chosen,
                and only the validation images that ``known`` lists are held out.
        """
        self._new_split, self._known_split, self._only_known = new, known, only_known

    def held_out(
        self,
        paths: Sequence[str],
        counts: np.ndarray,
        groups: Sequence[Hashable | None] | None = None,
        *,
        has_val: bool = False,
    ) -> np.ndarray | None:
        """Choose the validation images among the training images, and store a description of the choice.

        Args:
            paths: path of each image.
            counts: ``(images, classes)``, how often each class occurs in each image.
            groups: group of each image, if the annotations have groups.
            has_val: whether the data also has its own validation split. This split is not used. The description, which
                is stored in ``split_text``, then mentions this.

        Returns:
            Array ``(images,)`` bool, True for the validation images. None: the data is not the training data, and no
            image is held out, see ``only_known`` of :meth:`keep_split`.

        Raises:
            InputError: see :meth:`HoldOut.choose` and :func:`groups_of`.
        """
        root = self.root.parent if self.root.is_file() else self.root
        names = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
        # Other data can have some of the same names, such as cat/1.jpg. A copy of the training data has all of them.
        share = 1 if self._only_known else 0.5
        chosen = None if self._known_split is None else read_split(self._known_split, names, share=share)
        keeps = chosen is not None and self._known_split == self._new_split  # a resumed run
        text = f"as in {self._known_split}"
        if chosen is None and self._only_known:
            return None
        if chosen is None:
            groups = groups_of(names, root, self.groups) or groups
            text = self.hold_out.text + (f", {len(set(groups))} groups kept together" if groups else "")
            chosen = self.hold_out.choose(counts, groups)
        self.split_text = f"{(~chosen).sum()} training and {chosen.sum()} validation images: {text}"
        if has_val:
            self.split_text += "; the validation images of the data are not used"
        rank, _ = rank_and_world_size()
        if self._new_split is not None and not keeps and rank == 0:
            write_split(self._new_split, text, names, chosen)
        return chosen

    def warn_of_same_files(self, train: Sequence[str], val: Sequence[str]) -> None:
        """Log a warning if a training image and a validation image are files with the same content.

        Args:
            train: paths of the training images.
            val: paths of the validation images.
        """
        if rank_and_world_size()[0] == 0 and (pairs := same_files(train, val)):
            _logger.warning(
                "%d of %d validation images are also training images (same content; the first: %s and %s), so the "
                "scores are too good: remove them from one of the splits",
                len(pairs),
                len(val),
                *pairs[0][::-1],
            )

    def train_sampler(self) -> EpochSampler:
        """Build the sampler of training images.

        In a resumed run, the first epoch of the sampler is the epoch of the checkpoint.
        """
        sampler = EpochSampler(len(self.train_set), self.train_set.seed)
        sampler.set_epoch(self.first_epoch)
        return sampler

    def train_batches(self, sampler: EpochSampler) -> Sampler[list[Draw]]:
        """Build the batch sampler that groups the training samples of an epoch into batches.

        An incomplete last batch is dropped, unless it is the only batch.
        """
        size = self.hparams.batch_size
        return BatchSampler(sampler, size, drop_last=len(sampler) >= size)

    def train_dataloader(self) -> DataLoader:
        """Build the loader of augmented training batches.

        In a resumed run, the loader skips the batches that were used for training before the checkpoint was written.
        """
        batches = self.train_batches(self.train_sampler())
        return self.loader(
            self.train_set, batch_sampler=ResumedBatchSampler(batches, self.first_epoch, self.first_batch)
        )

    def val_dataloader(self) -> DataLoader:
        """Build the loader of validation images."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Build the loader of test images."""
        return self._evaluation_loader(self.test_set)

    def loader(self, dataset: TrainingImages | EvaluationImages, **options) -> DataLoader:
        """Build a data loader with ``num_workers`` loading processes.

        Args:
            dataset: data set to load.
            options: further keyword arguments of PyTorch's DataLoader.
        """
        return TimedLoader(
            dataset,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self.collate,
            worker_init_fn=_start_worker,
            **options,
        )

    def on_before_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Remove the error messages of data loading from a batch, log or raise them, and return the batch.

        In training, a warning is logged once for each unreadable image. In evaluation, an unreadable image raises
        InputError, because skipping it would change the score. All other errors raise InputError in both cases.
        """
        failures, errors = batch.pop("failures"), batch.pop("errors")
        if errors:
            raise InputError(errors[0])
        if failures and not self.trainer.training:
            raise InputError(f"{failures[0]} (skipping it would change the score)")
        for failure in set(failures) - self.skipped:
            self.skipped.add(failure)
            _logger.warning("%s; training continues without it", failure)
        return batch

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Normalise the images of a batch on the device.

        The entry ``image`` becomes a tensor ``(B, 3, H, W)`` in the floating-point type of the model.
        """
        dtype = self.trainer.lightning_module.dtype
        return batch | {"image": normalise(batch["image"], self.hparams.mean, self.hparams.std, dtype)}

    def state_dict(self) -> dict:
        """Return a dictionary with the position in the training data, for the checkpoint.

        It contains the epoch to resume, the number of finished batches in this epoch, the batch size, the number of
        processes and the number of training images.
        """
        epoch, batches = self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        shares = [self.hparams.batch_size, self.trainer.world_size]
        return {"epoch": epoch, "batches": batches, "shares": shares, "images": len(self.train_set)}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the epoch and the batch at which training resumes. Do nothing in evaluation.

        The data module saves this position itself, because Lightning builds the data loader before it restores its own
        counters.

        Raises:
            InputError: the run resumes within an epoch, but the number of images, the batch size or the number of
                processes has changed.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # evaluation always starts at the first batch
        self.first_epoch, self.first_batch = state_dict["epoch"], state_dict["batches"]
        images = state_dict.get("images")  # older checkpoints lack it
        if self.first_batch and images is not None and images != (found := len(self.train_set)):
            raise InputError(
                f"the run was stopped within epoch {self.first_epoch + 1} of {images} training images, but now there "
                f"are {found}: to resume within an epoch, give the same images"
            )
        self.require_same_batches(state_dict, self.trainer.world_size if self.trainer else 1)

    def require_same_batches(self, state_dict: Mapping[str, object], processes: int) -> None:
        """Check that a run can resume within an epoch: its batches must contain the same images as before.

        Args:
            state_dict: output of :meth:`state_dict` in the checkpoint; ``{}`` if the checkpoint has none.
            processes: number of processes of the run.

        Raises:
            InputError: the run resumes within an epoch, but the batch size or the number of processes has changed.
        """
        now = self.hparams.batch_size
        if state_dict.get("batches") and state_dict["shares"] != [now, processes]:
            size, before = state_dict["shares"]
            raise InputError(
                f"the run was stopped within epoch {state_dict['epoch'] + 1} with --data.batch_size {size} and "
                f"{before} processes, but now has {now} and {processes}: to resume within an epoch, give the same"
            )

    def _evaluation_loader(self, dataset: EvaluationImages) -> DataLoader:
        sampler: Sampler = EvaluationSampler(len(dataset))
        return self.loader(dataset, batch_size=self.hparams.batch_size, sampler=sampler)


def over_processes(messages: set[str]) -> set[str]:
    """Return the union of the sets of messages of all processes.

    All processes must call this function.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return messages
    gathered: list[set[str]] = [set() for _ in range(world_size)]
    torch.distributed.all_gather_object(gathered, messages)
    return set().union(*gathered)


def _start_worker(number: int) -> None:
    # Ctrl-C and a scheduler's signal go to the main process, which still needs the batches of its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
        _quieten_orphan()
    cv2.setNumThreads(0)  # one core per worker: OpenCV would start a thread on every core in each worker


def _quieten_orphan() -> None:
    """Print no traceback in this loading process if the main process is killed.

    Without this function, the threads that send batches to the main process would print one.
    """
    parent = os.getppid()

    def unless_orphaned(report: Callable[..., None]) -> Callable[..., None]:
        def report_to_parent(*error: object) -> None:
            time.sleep(0.5)  # the connection ends a moment before the process
            if os.getppid() == parent:
                report(*error)

        return report_to_parent

    Queue._on_queue_feeder_error = staticmethod(unless_orphaned(Queue._on_queue_feeder_error))
    sys.excepthook = unless_orphaned(sys.excepthook)  # of multiprocessing's thread that sends tensors
