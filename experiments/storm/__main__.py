"""Disturb tiny training runs at random moments, and check that nothing is lost.

    python -m experiments.storm                          # 100 events
    python -m experiments.storm --events 30 --seed 1

Both tasks are trained, with one or two processes. An event happens to a run at a random moment. There are two kinds:

- The run is disturbed, and its options stay the same. It is killed, stopped, suspended, started a second time, or
  requeued by SLURM's signal (a script replaces SLURM's program scontrol), the disk is full, or the kernel of the run's
  notebook dies.
- The run is restarted with other options: another batch size, more epochs or another number of processes.

After each event, the newest undamaged checkpoint must be at most one checkpoint interval old. Every error message must
have one line, and no file of a finished run may have changed. If the options of a run never changed, its final weights
must be equal to those of an undisturbed run, bit for bit. Otherwise, its steps and learning rates must agree with its
options. This command needs Linux.
"""

import argparse
import collections
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.storm.checks import (
    LossError,
    fingerprint,
    newest_step,
    require,
    require_expected_steps,
    require_plain,
    require_recent_checkpoint,
    same,
    state,
)
from experiments.storm.run import IMAGES, INTERVAL, PATIENCE, Run
from mobile_former.training.cli.command import run_command

KEEPING = ("kill", "kill one", "terminate", "requeue", "suspend", "full disk", "second start", "kernel dies")
CHANGING = ("batch size", "epochs", "devices")
TASKS = ("classification", "detection")
_REFUSED = "the run was stopped within epoch"  # the batches of an epoch cannot change within it


def main() -> None:
    """Run a storm, and print its events and losses. Exit with status 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m experiments.storm", description=__doc__.partition("\n")[0])
    parser.add_argument("--events", type=int, default=100, help="number of events (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the events (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("runs") / "storm", help="folder; default: runs/storm")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the runs are killed
    storm = Storm(options.output.resolve() / str(options.seed), options.seed)
    storm.blow(options.events)
    print(storm.summary())
    if storm.losses:
        sys.exit(1)


class Storm:
    """A sequence of random events, such as kills, that happen to training runs of both tasks.

    Args:
        output: folder of the data and the runs. An existing one is deleted.
        seed: random seed of the events.

    Attributes:
        events: number of events of each kind.
        losses: descriptions of what was lost.
        finished: dictionary from a finished run to the output of :func:`fingerprint` for its folder.
    """

    def __init__(self, output: Path, seed: int):
        self.output, self.draw = output, random.Random(seed)
        self.events: collections.Counter[str] = collections.Counter()
        self.losses: list[str] = []
        self.finished: dict[Run, dict[str, str]] = {}
        self.starts = 0
        self._undisturbed: dict[tuple[str, int], dict] = {}
        shutil.rmtree(output, ignore_errors=True)
        self.data = {task: output / "data" / task for task in TASKS}
        for task, command in zip(TASKS, ("classification.digits", "detection.scenes"), strict=True):
            arguments = [sys.executable, "-m", command, str(self.data[task]), "--limit", str(IMAGES)]
            subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)

    def blow(self, events: int) -> None:
        """Train runs one after another, each to its end. In total, ``events`` events happen to them."""
        number = 0
        while self.events.total() < events:
            task = TASKS[number % len(TASKS)]
            run = Run(task, self.data[task], self.output, f"run-{number}", self.draw.choice((1, 2)))
            kinds = KEEPING if number % 4 < 2 else KEEPING + CHANGING * 2
            number += 1
            most = min(self.draw.randint(3, 7), events - self.events.total())
            try:
                self._train(run, [self.draw.choice(kinds) for _ in range(most)])
            except (LossError, TimeoutError) as loss:
                self.losses.append(f"{run.task} {run.name}: {loss}")
                print(f"LOST: {self.losses[-1]}", flush=True)
            finally:
                run.kill()

    def summary(self) -> str:
        """Return a summary of the disturbances and their effects in a few lines."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.events.most_common())
        runs = f"{len(self.finished)} runs finished after {self.starts} starts"
        return f"{self.events.total()} events: {kinds}\n{runs}; {len(self.losses)} losses"

    def _train(self, run: Run, kinds: list[str]) -> None:
        """Train a run to its end. Before the end, one event of each kind in ``kinds`` happens to it, in this order."""
        run.segments.append((0, run.steps_per_epoch, run.epochs))
        ended = False
        for kind in kinds:
            early = kind in ("kill", "terminate") and self.draw.random() < 0.2
            if not ended:
                ended = self._advance(run, kind, self.draw.uniform(0.2, 8) if early else None)
            if ended and kind not in CHANGING:
                break
            if kind == "requeue" and run.kind != "slurm":
                kind = "suspend"
            if kind == "kernel dies" and run.kind != "kernel":
                kind = "kill"
            self.events[kind] += 1
            print(
                f"{self.events.total():4} {run.task} {run.name} x{run.processes} step {run.steps}: {kind}", flush=True
            )
            if kind in CHANGING:
                ended = self._change(run, kind)
            else:
                self._disturb(run, kind, early)
            for other, files in self.finished.items():
                require(fingerprint(other.folder.path) == files, f"files of {other.name} have changed")
        if not ended:
            run.kill("kernel")
            if run.ended:
                self._start(run, "plain")
            require_plain(*run.wait(), {0})
        self._require_all(run)
        self.finished[run] = fingerprint(run.folder.path)

    def _start(self, run: Run, kind: str) -> None:
        run.start(kind)
        self.starts += 1

    def _advance(self, run: Run, kind: str, seconds: float | None) -> bool:
        """Let a run take one to six steps, in at most ``seconds`` if given. Return True if the run has ended.

        ``kind`` is the kind of the next event. A run that is not running is started in the way that this event
        requires, for example by SLURM's launcher.
        """
        if run.ended:
            launchers = {"requeue": "slurm", "kernel dies": "kernel" if run.processes == 1 else "plain"}
            self._start(run, launchers.get(kind) or self.draw.choice(("plain", "plain", "slurm")))
            target = newest_step(run)
        else:
            target = run.steps
        target, end = target + self.draw.randint(1, 6), time.monotonic() + (seconds or PATIENCE)
        while not (run.ended or run.steps_since_start >= target):
            if time.monotonic() > end:
                require(seconds is not None, f"no step is taken in {PATIENCE} s")
                return False
            time.sleep(0.05)
        if run.ended:
            run.kill("kernel")
            require_plain(*run.wait(), {0, -signal.SIGKILL} if run.kind == "kernel" else {0})
        return run.ended

    def _disturb(self, run: Run, kind: str, early: bool) -> None:
        done = run.steps
        if kind in ("kill", "kill one", "kernel dies"):
            run.send(signal.SIGKILL, everyone=kind != "kill one")
            require_plain(*run.wait(), {-signal.SIGKILL, 0})
        elif kind == "terminate":
            run.send(signal.SIGTERM, everyone=self.draw.random() < 0.5)
            status, output = run.wait()
            require_plain(status, output, {0, 128 + signal.SIGTERM, *([-signal.SIGTERM] if early else [])})
        elif kind == "requeue":
            queued = run.queued()
            run.send(signal.SIGUSR1)
            status, output = run.wait()
            require_plain(status, output, {0, 128 + signal.SIGUSR1})
            require(run.queued() == queued + ["requeue 100"] * (status != 0), f"scontrol was called: {run.queued()}")
        elif kind == "full disk":
            self._fill_disk(run)
        else:
            run.send(signal.SIGSTOP)
            if kind == "second start":
                status, output = run.second_start()
                require_plain(status, output, {1})
                require(f"is in use by process {run.members[0].pid} on " in output, f"not refused: {output}")
            else:
                time.sleep(self.draw.uniform(0.5, 3))
            run.send(signal.SIGCONT)
        if run.ended and not early:
            exact = kind in ("terminate", "requeue")
            require_recent_checkpoint(run, done, 0 if exact else INTERVAL)

    def _fill_disk(self, run: Run) -> None:
        """Simulate a full disk: limit the size of the files that the run can write, to 1 kB or 1 MB."""
        process = run.members[0].pid
        limits = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (self.draw.choice((1_000, 1_000_000)), limits[1]))
        try:
            status, output = run.wait(20)
            require_plain(status, output, {1})
            require("File too large" in output, f"another error: {output}")
        except TimeoutError:  # the run wrote no such file
            resource.prlimit(process, resource.RLIMIT_FSIZE, limits)

    def _change(self, run: Run, kind: str) -> bool:
        """Restart a run after changing the option that ``kind`` names. Return True if the run has ended."""
        if not run.ended and self.draw.random() < 0.5:
            run.send(signal.SIGTERM)
        if run.members:
            run.kill("kernel")
            require_plain(*run.wait(), {0, 128 + signal.SIGTERM, -signal.SIGKILL})
        before = run.batch, run.epochs, run.processes
        if run.folder.is_finished or kind == "epochs":
            run.epochs += 1
        if kind == "batch size":
            run.batch = self.draw.choice([size for size in (2, 4, 8) if size != run.batch])
        if kind == "devices":
            run.processes = 3 - run.processes
        start = newest_step(run)
        self._start(run, "plain")
        while not run.ended and run.steps_since_start <= start:
            time.sleep(0.05)
        if run.ended:
            status, output = run.wait()
            require_plain(status, output, {0, 1})
            if status == 1:
                require(_REFUSED in output, f"another error: {output}")
                run.batch, run.epochs, run.processes = before
                return False
        run.segments.append((start, run.steps_per_epoch, run.epochs))
        return run.ended

    def _require_all(self, run: Run) -> None:
        """Check steps and learning rates of a finished run. If its options never changed, also check its weights."""
        require_expected_steps(run)
        require(run.folder.is_finished, "there are no final metrics")
        if len(run.segments) == 1:
            key = run.task, run.processes
            if key not in self._undisturbed:
                calm = Run(run.task, run.data, self.output, f"undisturbed-{run.processes}", run.processes)
                calm.start()
                require_plain(*calm.wait(), {0})
                self._undisturbed[key] = state(calm)
            require(same(state(run), self._undisturbed[key]), "the weights differ from those of an undisturbed run")


if __name__ == "__main__":
    run_command(main)
