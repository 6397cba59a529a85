"""Measure the share of Hungarian matching in the time of a training step of E2E-MF-508M.

    python -m experiments.matching                       # batch 2, 800×1056 pixels, 20 objects per image

Hungarian matching assigns predictions to objects. It is applied to the predictions after each of the nine blocks of the
detection head. A training step consists of forward, matching, loss, backward and optimiser step, on a GPU if available.
The time of matching starts when the predictions after all blocks are ready, and ends when the pairs of predictions and
objects are known. It includes the transfer from the GPU to the CPU. The command prints the median share over the steps.
"""

import argparse
import statistics
import time

import torch

import detection
from mobile_former.training.optimisation import parameter_groups


def main() -> None:
    """Time the training steps, and print the share of matching in the time of a step."""
    parser = argparse.ArgumentParser(prog="python -m experiments.matching", description=__doc__.partition("\n")[0])
    parser.add_argument("--name", default="e2e_mf_508m", help="the detector (default: e2e_mf_508m)")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1056), help="height and width in pixels")
    parser.add_argument("--batch", type=int, default=2, help="images per step (default: 2)")
    parser.add_argument("--objects", type=int, default=20, help="objects per image (default: 20)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one warm-up step (default: 5)")
    options = parser.parse_args()

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = detection.create_detector(options.name, num_classes=80).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-4), lr=1e-4)
    images = torch.randn(options.batch, 3, *options.size, device=device)
    targets = [
        {
            "labels": torch.randint(0, 80, (options.objects,), device=device),
            "boxes": torch.rand(options.objects, 4, device=device) * 0.4 + 0.1,
        }
        for _ in range(options.batch)
    ]
    matcher = TimedMatcher(model.criterion.matcher, device)
    model.criterion.matcher = matcher
    shares, steps = [], []
    for number in range(options.steps + 1):
        matcher.seconds = 0.0
        start = now(device)
        model.loss(model(images), targets)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = now(device) - start
        if number:
            steps.append(seconds)
            shares.append(matcher.seconds / seconds)
    layers = len(model.blocks)
    print(
        f"{options.name}, batch {options.batch}, {options.size[0]}x{options.size[1]} pixels, {layers} layers, "
        f"{options.objects} objects per image, {device}: a step takes {statistics.median(steps):.2f} s, matching "
        f"{statistics.median(shares):.2%} of it"
    )


class TimedMatcher:
    """Wrapper of a matcher that measures the time of the calls.

    Args:
        matcher: matcher to time.
        device: device of the predictions.

    Attributes:
        seconds: total time of all calls in seconds.
    """

    def __init__(self, matcher: detection.HungarianMatcher, device: torch.device):
        self.matcher = matcher
        self.device = device
        self.seconds = 0.0

    def match_layers(self, layers: list, targets: list) -> list:
        """Call :meth:`HungarianMatcher.match_layers` and add the time of the call to ``seconds``."""
        start = now(self.device)
        pairs = self.matcher.match_layers(layers, targets)
        self.seconds += now(self.device) - start
        return pairs


def now(device: torch.device) -> float:
    """Wait until the device has finished its pending work, then return the current time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
