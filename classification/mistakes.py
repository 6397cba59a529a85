"""Write the mistakes of a classifier: a table of all mistakes, and a picture of the most confident ones."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from mobile_former.training.data.module import over_processes
from mobile_former.training.run.figures import WRONG, image_sheet

_DRAWN = 24  # number of mistakes in the picture


class Mistake(NamedTuple):
    """An image whose predicted class differs from its true class."""

    confidence: float  # probability of the predicted class
    name: str  # path of the image
    true: int  # label of the true class
    predicted: int  # label of the predicted class
    true_probability: float  # probability of the true class
    side: int = 0  # side of the square image that the model sees, in pixels
    pixels: bytes | None = None  # this image, (side, side, 3) uint8 RGB; None: the mistake is not drawn


class Mistakes(Callback):
    """Callback that collects the wrong predictions of a test in the list ``rows``, sorted by descending confidence."""

    def __init__(self):
        self.rows: list[Mistake] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: torch.Tensor, batch: dict, batch_idx: int
    ) -> None:
        """Add the mistakes in a batch to ``rows``. ``outputs`` are the class probabilities ``(B, K)``."""
        scores, predicted = outputs.max(1)
        wrong = (predicted != batch["label"]).nonzero().flatten().tolist()
        if not wrong:
            return
        data = trainer.datamodule.hparams
        mean, std = (torch.tensor(values, device=outputs.device)[:, None, None] for values in (data.mean, data.std))
        for index in wrong:
            true = int(batch["label"][index])
            picture = (255 * (batch["image"][index].float() * std + mean)).round().clamp(0, 255).byte()
            self.rows.append(
                Mistake(
                    float(scores[index]),
                    batch["name"][index],
                    true,
                    int(predicted[index]),
                    float(outputs[index, true]),
                    picture.shape[1],
                    picture.permute(1, 2, 0).cpu().numpy().tobytes(),
                )
            )
        self._sort()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the mistakes of all processes."""
        self.rows = list(over_processes(set(self.rows)))
        self._sort()

    def write(self, folder: Path, class_names: Sequence[str]) -> list[str]:
        """Write all mistakes to ``mistakes.csv``. If there are any, draw the most confident ones in ``mistakes.png``.

        Args:
            folder: folder of the files.
            class_names: class names in the order of the labels.

        Returns:
            A list of the names of the written files.
        """
        # Paths may contain bytes that are not valid text.
        with (folder / "mistakes.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "true", "predicted", "probability", "probability of true"])
            for row in self.rows:
                names = class_names[row.true], class_names[row.predicted]
                writer.writerow([row.name, *names, round(row.confidence, 6), round(row.true_probability, 6)])
        if not self.rows:
            return ["mistakes.csv"]
        drawn = self.rows[:_DRAWN]
        image_sheet(
            [np.frombuffer(row.pixels, np.uint8).reshape(row.side, row.side, 3) for row in drawn],
            [
                f"{class_names[row.predicted]}  {row.confidence:.0%}\nis {class_names[row.true]}  "
                f"{row.true_probability:.0%}\n{Path(row.name).name}"
                for row in drawn
            ],
            folder / "mistakes.png",
            title=f"the most confident of {len(self.rows)} mistakes: prediction, true class, file",
            colours=[WRONG] * len(drawn),
        )
        return ["mistakes.csv", "mistakes.png"]

    def _sort(self) -> None:
        self.rows.sort(key=lambda row: (-row.confidence, row.name))
        self.rows[_DRAWN:] = [row._replace(pixels=None) for row in self.rows[_DRAWN:]]
