"""Sources of weights files: local files, URLs, and repositories of the Hugging Face Hub."""

import contextlib
import hashlib
import importlib
import logging
import os
import re
import sys
import tempfile
from pathlib import Path, PurePosixPath
from types import ModuleType
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import torch

from mobile_former.errors import InputError, first_line

CONFIG, WEIGHTS = "config.json", "model.safetensors"

_logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_HUB = "hf://"
_TIMEOUT = 60  # seconds without an answer
_CHUNK = 2**20  # bytes


def local_file(source: str | Path, sha256: str | None = None) -> Path:
    """Download a weights file if necessary, and return its local path.

    Downloads from a URL are stored in the folder of torch.hub, ``torch.hub.get_dir()/checkpoints``. Those from the Hub
    are stored in the cache of huggingface_hub. A file that is already stored is not downloaded again.

    Args:
        source: path of a file; ``hf://owner/name`` or ``hf://owner/name@revision`` for ``model.safetensors`` in a
            repository of the Hugging Face Hub; or an ``https://`` URL.
        sha256: SHA-256 of the file at a URL, 64 hexadecimal digits. It can also be given in the URL, which then ends in
            ``#sha256=…``. A URL without SHA-256 is refused, because a changed or damaged file would not be noticed.

    Raises:
        InputError: the file cannot be downloaded, or ``sha256`` is missing, invalid or not that of the file.
    """
    text = str(source)
    if text.startswith(_HUB):
        repository, _, revision = text.removeprefix(_HUB).partition("@")
        path = fetch(repository, revision=revision or None) / WEIGHTS
        if not path.is_file():
            raise InputError(f"{text} has no {WEIGHTS}: give a repository with one, or the URL of its file")
        return path
    if not re.match(r"https?://", text):
        if sha256 is not None:
            raise InputError(f"sha256 is for a URL, but {text} is a file: leave it out")
        return Path(source)
    url, _, fragment = text.partition("#")
    expected = (sha256 or fragment.removeprefix("sha256=")).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise InputError(
            f"{text}: the SHA-256 of the file is {'missing' if not expected else 'not 64 hexadecimal digits'}: add "
            "#sha256=… to the URL, or sha256=…; `sha256sum FILE` prints that of a file that you trust"
        )
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "weights"
    stem, dot, suffix = name.partition(".")
    path = Path(torch.hub.get_dir(), "checkpoints", f"{stem}-{expected[:8]}{dot}{suffix}")
    if not (path.is_file() and _sha256(path) == expected):
        _download(url, path, expected)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: Path, expected: str) -> None:
    """Download a file to ``path``. The file is only kept if its SHA-256 is ``expected``.

    Raises:
        InputError: the server cannot be reached, or sends another file, a web page, or only a part of the file.
    """
    _logger.info("downloading %s to %s", url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): set TORCH_HOME to another folder") from error
    try:
        with os.fdopen(handle, "wb") as file:
            digest, received, total, kind = _receive(url, file)
        if kind == "text/html":
            raise InputError(f"{url}: the server sends a web page, not a file: give the address of the file itself")
        if total is not None and received < total:
            raise InputError(f"{url}: the download broke off after {received} of {total} bytes: try again")
        if digest != expected:
            raise InputError(
                f"{url}: the file has SHA-256 {digest}, not {expected}: it was changed or damaged, or the sum is wrong"
            )
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)


def _receive(url: str, file) -> tuple[str, int, int | None, str]:
    """Write the content of a URL to an open file.

    Returns:
        A tuple (SHA-256, number of received bytes, number of bytes that the server announced or None, content type).
    """
    digest, received, shown = hashlib.sha256(), 0, -1
    try:
        with urlopen(Request(url, headers={"User-Agent": "mobile-former"}), timeout=_TIMEOUT) as answer:
            length = answer.headers["Content-Length"]
            total = None if length is None else int(length)
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                percent = 100 * received // total if total else 0
                if sys.stderr.isatty() and percent > shown:
                    shown = percent
                    print(f"\r{received / 1e6:.1f} MB, {percent} %", end="\n" * (percent == 100), file=sys.stderr)
            return digest.hexdigest(), received, total, answer.headers.get_content_type()
    except Exception as error:  # URLError, HTTPError, timeouts, and http.client's own types
        raise InputError(f"{url}: cannot be downloaded ({reason(error)}): check the address and the network") from error


def fetch(
    repository: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Download the configuration and weights of a model from the Hugging Face Hub.

    Files that are already in the cache are not downloaded again.

    Args:
        repository: name of the repository, ``"owner/name"``.
        revision: branch, tag or commit of the repository; default: the main branch.
        token: access token for private repositories; default: the token of ``hf auth login``.
        cache_dir: folder in which downloads are cached; default: the cache folder of huggingface_hub.

    Returns:
        The path of the local folder that contains the files.

    Raises:
        InputError: the name is invalid, the repository cannot be downloaded, or huggingface_hub is not installed.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"there is no folder {repository}, and repositories on the Hub have names like owner/name")
    hub = huggingface_hub(f"fetch {repository} from the Hub (there is no such folder)")
    try:
        folder = hub.snapshot_download(
            repository, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=[CONFIG, WEIGHTS]
        )
    except Exception as error:  # huggingface_hub and its HTTP client raise exceptions of many types
        raise InputError(
            f"there is no folder {repository}, and it cannot be fetched from the Hub ({reason(error)}): check the "
            "name and the network; for a private repository, log in by `hf auth login`"
        ) from error
    return Path(folder)


def huggingface_hub(purpose: str) -> ModuleType:
    """Import and return huggingface_hub.

    Args:
        purpose: what the library is needed for. The error message contains this text.

    Raises:
        InputError: huggingface_hub is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(
            f"cannot {purpose}: huggingface_hub is missing ({first_line(error)}): pip install -c constraints.txt -e "
            "'.[hub]' in this repository, pip install huggingface_hub elsewhere"
        ) from error


def reason(error: Exception) -> str:
    """Return one line of text with the type and the first line of an error, for use in messages."""
    return f"{type(error).__name__}: {first_line(error)}"
