"""Progress of a prediction: a progress bar with the number of images per second, and a summary line at the end."""

import signal
import time
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mobile_former.training.prediction.inputs import Input

ROWS = 20  # images whose results are printed one by one; of more images, a summary is printed


class Pace:
    """Progress bar and speed measurement of a prediction. The bar is only shown in a terminal.

    Args:
        inputs: inputs of the prediction.
        shown: whether to show the progress bar and print the summary line.
    """

    def __init__(self, inputs: Sequence[Input], *, shown: bool):
        # The number of frames of a video is not known before it ends.
        self.total = None if any(each.moves for each in inputs) else len(inputs)
        self.noun = "images" if self.total is not None else "frames"
        self.shown = shown
        self.count, self.seconds = 0, 0.0
        self.stopped = False

    def follow(self, predictions: Iterable) -> Iterator:
        """Yield the predictions one by one, and update the progress bar and the speed.

        For videos and cameras, the number of predictions is unknown. The first Ctrl-C then only ends this iterator, so
        that the results so far can be written.
        """
        terminal = Console(stderr=True)
        columns = (TextColumn(self.noun), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
        start = time.perf_counter()
        with Progress(
            *columns,
            *([TimeRemainingColumn()] if self.total else []),
            console=terminal,
            transient=True,
            disable=not (self.shown and terminal.is_terminal),
        ) as progress:
            task = progress.add_task("", total=self.total, speed="")
            earlier = signal.signal(signal.SIGINT, self._stop) if self.total is None else None
            try:
                for prediction in predictions:
                    yield prediction
                    self.count += 1
                    self.seconds = time.perf_counter() - start
                    progress.update(task, advance=1, speed=f"{self.count / self.seconds:.1f}/s")
                    if self.stopped:
                        break
            finally:
                if earlier is not None:
                    signal.signal(signal.SIGINT, earlier)

    def print_summary(self) -> None:
        """Print the number of predictions, the time they took, and the number per second, if there are at least two."""
        if self.shown and self.count > 1:
            end = "; stopped" if self.stopped else ""
            speed = self.count / max(self.seconds, 1e-9)
            print(f"{self.count} {self.noun} in {self.seconds:.1f} s, {speed:.1f} {self.noun} a second{end}")

    def _stop(self, *_) -> None:
        self.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the next one ends the command


def rows_shown(count: int, *, quiet: bool, verbose: bool) -> bool | None:
    """Return whether to print a row for each of ``count`` images (True), a summary (False) or nothing (None).

    Args:
        count: number of images.
        quiet: print nothing.
        verbose: print a row for each image, even if there are more than ``ROWS`` images.
    """
    if quiet:
        return None
    return verbose or count <= ROWS
