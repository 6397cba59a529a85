"""What the tasks' LightningDataModules share: exact repetition, loaders, unreadable images, normalisation."""

import logging
import os
import signal
from collections.abc import Callable
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

_logger = logging.getLogger(__name__)


class ImageData(LightningDataModule):
    """Base of the tasks' data modules.

    A subclass saves ``batch_size``, ``mean`` and ``std`` among its hyperparameters, sets ``train_set``, ``val_set`` and
    ``test_set`` in ``setup``, and has ``class_names``, ``dataset_name``, ``describe()`` and ``draw_augmented(path)``.

    Args:
        root: the folder of the data, None for embedded data.
        batch_size: images in a batch of one process.
        num_workers: loading processes; default: one for each core but one, at most 16, and none for embedded data,
            which is made faster than it could be passed on.
        std: of the channels, in 0..1.
        collate: from samples to a batch.

    Raises:
        InputError: a number out of range.
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
        self.skipped: set[str] = set()  # messages about training images that could not be read
        self.first_epoch = 0  # of the fit that follows; later in a resumed run
        self.first_batch = 0  # of that epoch

    def samples_to_draw(self, most: int) -> list[dict]:
        """Augmented training samples from all over the data, as the first epoch has them.

        Args:
            most: how many, at most.

        Raises:
            InputError: one that cannot be made.
        """
        samples = [self.train_set[Draw(index, 0)] for index in indices_to_look_at(self.train_set.source, most)]
        for sample in samples:
            if "error" in sample:
                raise InputError(sample["error"])
        return samples

    def skipped_counts(self) -> dict[str, int]:
        """What training went on without, for the run's report; all processes have to ask."""
        return {"skipped_images": len(over_processes(self.skipped))}

    def train_sampler(self) -> EpochSampler:
        """Every training image once an epoch, beginning with the epoch that the run goes on with."""
        sampler = EpochSampler(len(self.train_set), self.train_set.seed)
        sampler.set_epoch(self.first_epoch)
        return sampler

    def train_batches(self, sampler: EpochSampler) -> Sampler[list[Draw]]:
        """From an epoch's samples to its batches; the last, smaller one is left out where there are others."""
        size = self.hparams.batch_size
        return BatchSampler(sampler, size, drop_last=len(sampler) >= size)

    def train_dataloader(self) -> DataLoader:
        """Batches of augmented images, beginning with the one that the run goes on with."""
        batches = self.train_batches(self.train_sampler())
        return self.loader(
            self.train_set, batch_sampler=ResumedBatchSampler(batches, self.first_epoch, self.first_batch)
        )

    def val_dataloader(self) -> DataLoader:
        """Batches of validation images."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Batches of test images."""
        return self._evaluation_loader(self.test_set)

    def loader(self, dataset: TrainingImages | EvaluationImages, **options) -> DataLoader:
        """A loader with this module's processes; ``options`` are DataLoader's, of batches and their order."""
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
        """Tell of images that could not be read: a warning in training, an error where the score would change."""
        failures, errors = batch.pop("failures"), batch.pop("errors")
        if errors:
            raise InputError(errors[0])
        if failures and not self.trainer.training:
            raise InputError(f"{failures[0]} (leaving it out would change the score)")
        for failure in set(failures) - self.skipped:
            self.skipped.add(failure)
            _logger.warning("%s; training goes on without it", failure)
        return batch

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        """Normalise on the device: ``image`` becomes ``(B, 3, H, W)`` of the model's floating-point type."""
        dtype = self.trainer.lightning_module.dtype
        return batch | {"image": normalise(batch["image"], self.hparams.mean, self.hparams.std, dtype)}

    def state_dict(self) -> dict:
        """Where the run that is saved goes on: an epoch, how many of its batches are done, and who shares an epoch."""
        epoch, batches = self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1
        if batches >= self.trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches, "shares": self._shares}

    def load_state_dict(self, state_dict: dict) -> None:
        """Begin where a checkpoint ends: the loader is made before Lightning's loops know of it."""
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # an evaluation begins nowhere
        self.first_epoch, self.first_batch = state_dict["epoch"], state_dict["batches"]
        if self.first_batch and state_dict["shares"] != self._shares:
            (size, processes), (now, now_processes) = state_dict["shares"], self._shares
            raise InputError(
                f"the run was stopped within epoch {self.first_epoch + 1}, with --data.batch_size {size} and "
                f"{processes} processes, and now these are {now} and {now_processes}: within an epoch it only goes on "
                "with the same"
            )

    @property
    def _shares(self) -> list[int]:
        """What decides which process sees which images of an epoch in which batch."""
        return [self.hparams.batch_size, self.trainer.world_size]

    def _evaluation_loader(self, dataset: EvaluationImages) -> DataLoader:
        sampler: Sampler = EvaluationSampler(len(dataset))
        return self.loader(dataset, batch_size=self.hparams.batch_size, sampler=sampler)


def over_processes(messages: set[str]) -> set[str]:
    """The messages of all processes, each once."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return messages
    gathered: list[set[str]] = [set() for _ in range(world_size)]
    torch.distributed.all_gather_object(gathered, messages)
    return set().union(*gathered)


def default_workers() -> int:
    """Loading processes for this machine: one for each core but one, from 1 to 16."""
    # Only Linux tells which cores this process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(1, cores - 1))


def _start_worker(number: int) -> None:
    # Ctrl-C, and a scheduler's signal to all of a job, are for the main process, which still needs its batch.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    cv2.setNumThreads(0)  # one core for each worker: OpenCV would start a thread on every core in each of them
