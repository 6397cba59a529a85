"""ONNX files in ONNX Runtime Web, which runs in browsers and in Node.js."""

import subprocess
from pathlib import Path

import numpy as np

from mobile_former.errors import InputError

PACKAGE = "onnxruntime-web"

_SCRIPT = Path(__file__).with_name("web.mjs")


def is_installed() -> bool:
    """Return whether Node.js is installed, and its package onnxruntime-web in the current folder or one above it."""
    command = ["node", "--print", f"require.resolve('{PACKAGE}')"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


class WebSession:
    """An ONNX file with one input and one output in ONNX Runtime Web (WebAssembly), in a process of Node.js.

    Args:
        path: path of the file.

    Attributes:
        processor_seconds: processor time of all runs of all sessions, in seconds.

    Raises:
        InputError: Node.js or its package is missing.
    """

    processor_seconds = 0.0

    def __init__(self, path: Path):
        if not is_installed():
            raise InputError(
                f"node cannot find {PACKAGE}: install Node.js, then run npm install {PACKAGE} in this folder"
            )
        command = ["node", str(_SCRIPT), str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run the file on images ``(1, 3, S, S)``. Return its output ``(1, K)``."""
        self._process.stdin.write(np.int32(images.shape).tobytes() + np.ascontiguousarray(images, np.float32).tobytes())
        self._process.stdin.flush()
        (length,) = np.frombuffer(self._read(4), np.uint32)
        milliseconds, *_ = values = np.frombuffer(self._read(length), np.float32)
        WebSession.processor_seconds += milliseconds / 1000
        return values[None, 1:]

    def _read(self, length: int) -> bytes:
        content = self._process.stdout.read(length)
        if len(content) < length:
            raise InputError(f"Node.js ended with status {self._process.wait()}: see its message above")
        return content

    def __del__(self):
        if process := getattr(self, "_process", None):
            process.stdin.close()  # the script ends
            process.wait()
