"""Locks for run folders. They ensure that only one process at a time writes into a folder.

The lock is a file in the folder. On one machine, a process locks the file in the operating system, and owns the lock
until the process ends. On a disk that several machines share, other machines may not see such a lock. The owner
therefore writes its name into the file and touches the file at intervals. A new process on another machine watches the
file for a while. If the file is not touched, the owner counts as dead, and the new process takes over the lock.
"""

import atexit
import contextlib
import json
import logging
import os
import platform
import sys
import threading
import time
from io import FileIO
from pathlib import Path

from mobile_former.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: the lock file of every process is watched, as if it were on another machine
    fcntl = None

LOCK = "run.lock"
HEARTBEAT = 10  # seconds between two touches of the file
GRACE = 60  # seconds without a touch after which an owner on another machine counts as dead

_BOOT = Path("/proc/sys/kernel/random/boot_id")  # Linux only; the containers on a machine share this id and the locks
_logger = logging.getLogger(__name__)
_held: dict[Path, FileIO] = {}  # locked files of this process by folder; unbuffered, hence safe to close after a fork
_beating = threading.Event()


class InUseError(InputError):
    """Exception for a run folder that another process uses."""


def lock_folder(folder: Path) -> None:
    """Lock a run folder until :func:`release_folder` is called or this process ends.

    A folder that this process has already locked stays locked.

    Args:
        folder: existing folder.

    Raises:
        InUseError: another process holds the lock.
        InputError: the file of the lock cannot be written.
        FileNotFoundError: the folder does not exist.
    """
    folder = folder.resolve()
    path = folder / LOCK
    if folder in _held:
        if _is_at(_held[folder], path):
            return
        _held.pop(folder).close()  # of a folder that was deleted
    try:
        while True:
            try:
                file, created = path.open("xb+", buffering=0), True
            except FileExistsError:
                try:
                    file, created = path.open("rb+", buffering=0), False
                except FileNotFoundError:  # just released
                    continue
            reached = _lock(file)
            # The previous owner can have removed the file before this process locked it.
            if _is_at(file, path):
                break
            file.close()
        if created:
            _sign(file)
        elif not reached or _owner(file).get("machine") != _me()["machine"]:
            _outwait(path)
            _sign(file)
            time.sleep(1)  # of several processes that take over at the same time, the last one keeps the lock
            _require_mine(file, folder)
        else:
            _sign(file)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"cannot lock the run folder {folder}: {error.strerror} at {path}") from error
    _held[folder] = file
    if not _beating.is_set():
        _beating.set()
        threading.Thread(target=_beat, name="lock of the run folder", daemon=True).start()


def release_folder(folder: Path) -> None:
    """Release the lock of a run folder. Do nothing if this process does not hold it."""
    file = _held.pop(folder.resolve(), None)
    if file is None:
        return
    with contextlib.suppress(OSError):  # the folder was moved or deleted
        if fcntl is None:  # Windows does not remove open files
            file.close()
        os.unlink(file.name)
    file.close()


def _is_at(file: FileIO, path: Path) -> bool:
    """Return whether an open file is still the file at ``path``. Return False if it was moved or deleted."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _lock(file: FileIO) -> bool:
    """Lock a file in the operating system. Return True on success, and False if such locks are not supported.

    Raises:
        InUseError: another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.1)  # time for the owner to write its name
        raise _refusal(Path(file.name).parent, _owner(file)) from None
    except OSError:  # a shared disk without locks
        return False
    return True


def _outwait(path: Path) -> None:
    """Watch a lock file for ``GRACE`` seconds. Return if nobody has touched it, so that its owner counts as dead.

    Raises:
        InUseError: the owner has touched the file, so the owner is alive.
    """

    def look() -> tuple[int, dict]:
        with path.open("rb", buffering=0) as file:  # a network file system updates the time of a file when it is opened
            return os.fstat(file.fileno()).st_mtime_ns, _owner(file)

    first = look()
    _logger.info("waiting up to %d s for a sign of life of %s", GRACE, _name(first[1]))
    end = time.monotonic() + GRACE
    while time.monotonic() < end:
        time.sleep(min(1, GRACE / 10))
        if look() != first:
            raise _refusal(path.parent, first[1])


def _beat() -> None:
    while True:
        time.sleep(HEARTBEAT)
        for folder, file in list(_held.items()):
            try:
                os.utime(file.name)
                _require_mine(file, folder)
            except InUseError as error:  # this process was suspended, or cut off from the disk
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            except (OSError, ValueError):  # moved or deleted, or just released
                continue


def _me() -> dict:
    boot = _BOOT.read_text().strip() if _BOOT.is_file() else platform.node()
    return {"host": platform.node(), "pid": os.getpid(), "machine": boot}


def _sign(file: FileIO) -> None:
    try:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(_me()).encode())
        os.utime(file.name)
    except OSError:  # a full disk; other processes would have to watch a file without an owner's name
        os.unlink(file.name)
        raise


def _owner(file: FileIO) -> dict:
    """Return the dictionary in which the owner of a lock file describes itself; ``{}`` if it is not yet written."""
    try:
        file.seek(0)
        owner = json.loads(file.read())
        return owner if isinstance(owner, dict) else {}
    except ValueError:
        return {}


def _require_mine(file: FileIO, folder: Path) -> None:
    owner = _owner(file)
    if owner and owner != _me():
        raise _refusal(folder, owner)


def _name(owner: dict) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', 'another machine')}"


def _refusal(folder: Path, owner: dict) -> InUseError:
    return InUseError(
        f"the run folder {folder} is in use by {_name(owner)}: wait until it ends, or give this run another --name"
    )


def _forget() -> None:
    """Close the lock files in a forked process, so that each lock ends with the process that owns it."""
    for file in _held.values():
        file.close()
    _held.clear()
    _beating.clear()


atexit.register(lambda: [release_folder(folder) for folder in list(_held)])
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
