"""Functions that count the processor cores this process may use, and limit PyTorch's threads to this number."""

import os
from pathlib import Path


def available_cores() -> int:
    """Return the number of cores that this process may use.

    The number is limited by the process's CPU affinity and by the CPU quota of its control groups. Containers set such
    a quota. Fractions of a core are dropped, but at least one core is returned.
    """
    # Only Linux reports the affinity.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def default_workers() -> int:
    """Return the default number of loading processes: number of cores minus one, but at least 1 and at most 16."""
    return min(16, max(1, available_cores() - 1))


def cpu_quota(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the CPU quota that control groups (cgroups) set for this process.

    The quota of a control group also limits the groups inside this group. The smallest quota is therefore returned.

    Args:
        groups: folder where the control groups (version 1 or 2) are mounted.
        membership: file that lists the control groups of the process.

    Returns:
        The quota in cores (seconds of processor time per second), such as 1.5. None: there is no quota.
    """
    if not membership.is_file():
        return None
    quotas = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = groups / "cpu" if controllers else groups
        # In a container, the root may be the group itself although the path is that of the host.
        group = root / path.lstrip("/")
        while group != group.parent and group.is_relative_to(root):
            quotas += _quota_of(group)
            group = group.parent
    return min(quotas, default=None)


def _quota_of(group: Path) -> list[float]:
    """Return a list with one number, the CPU quota of a control group in cores; ``[]`` if there is no quota."""
    try:
        if (group / "cpu.max").is_file():  # version 2
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return [int(quota) / int(period)] if quota not in ("max", "-1") else []
    except (OSError, ValueError):
        return []


def limit_threads(processes: int = 1) -> None:
    """Limit the number of PyTorch's threads per operation to the number of cores that this process may use.

    PyTorch's default is the number of cores of the machine, even in a container that may use fewer. If the user has set
    ``OMP_NUM_THREADS``, nothing is changed.

    Args:
        processes: number of processes of the run on this machine. The cores are divided equally among them. If there
            are several processes, this function also sets ``OMP_NUM_THREADS``, so that the processes that Lightning
            starts use the same limit.
    """
    import torch  # here, because parsers of command lines must not import it

    if "OMP_NUM_THREADS" in os.environ:
        return
    threads = max(1, available_cores() // processes)
    if processes > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch.get_num_threads() > threads:
        torch.set_num_threads(threads)
