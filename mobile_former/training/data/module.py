"""Base class of the data modules.

It builds the data loaders, handles unreadable images and saves the position within an epoch in checkpoints.
"""

import logging
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
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
from mobile_former.training.data.timed_loader import TimedLoader
from mobile_former.training.processors import default_workers

_logger = logging.getLogger(__name__)


class ImageData(LightningDataModule):
    """Base class of the data modules for classification and detection.

    A subclass saves ``batch_size``, ``mean`` and ``std`` as hyperparameters. Its ``setup`` sets ``train_set``,
    ``val_set`` and ``test_set``. A subclass also has the following members:

    - ``dataset_name``: name of the data set;
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
        self._class_names: list[str] | None = None
        self.skipped: set[str] = set()  # messages of training images that could not be read
        self.first_epoch = 0  # first epoch of the next fit; above 0 in a resumed run
        self.first_batch = 0  # first batch of that epoch

    @property
    def class_names(self) -> list[str]:
        """List of class names in the order of the class indices.

        If no names were set, these are the names of the classes in the training data.
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
        """Remove the error messages of data loading from a batch, and log or raise them.

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
        return {"epoch": epoch, "batches": batches, "shares": self._shares, "images": len(self.train_set)}

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
        if self.first_batch and state_dict["shares"] != self._shares:
            (size, processes), (now, now_processes) = state_dict["shares"], self._shares
            raise InputError(
                f"the run was stopped within epoch {self.first_epoch + 1} with --data.batch_size {size} and "
                f"{processes} processes, but now has {now} and {now_processes}: to resume within an epoch, give the "
                "same"
            )

    @property
    def _shares(self) -> list[int]:
        """List of the batch size and the number of processes.

        These two numbers determine which images are in each batch.
        """
        return [self.hparams.batch_size, self.trainer.world_size]

    def _evaluation_loader(self, dataset: EvaluationImages) -> DataLoader:
        sampler: Sampler = EvaluationSampler(len(dataset))
        return self.loader(dataset, batch_size=self.hparams.batch_size, sampler=sampler)


def over_processes(messages: set[str]) -> set[str]:
    """Combine the messages of all processes into one set, and return it.

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
    cv2.setNumThreads(0)  # one core per worker: OpenCV would start a thread on every core in each worker
