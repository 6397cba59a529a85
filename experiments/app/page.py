"""The web page of the app, built with Gradio, and the server of the page."""

import html
import importlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from detection.predict import CheckpointDetector
from experiments.app.answer import BOXES, Answer, answer
from experiments.attention.look import Predictor, look
from experiments.attention.recording import block_names
from mobile_former.ablation import model_label
from mobile_former.errors import InputError
from mobile_former.training.extras import import_extra

if TYPE_CHECKING:
    import gradio

_LARGEST = "200mb"  # size limit of an uploaded file
_KEPT = 1800  # seconds that an answer is kept, so that other blocks can be drawn
_SESSIONS = 10  # browser sessions whose last answer is kept
# The browser must load nothing from other servers, whatever Gradio's page requests.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:"
)
_STYLE = """
.problem { color: #b3261e; font-weight: 600; overflow-wrap: anywhere; }
.dark .problem { color: #ffb4ab; }
"""


def build_page(predictor: Predictor) -> "gradio.Blocks":
    """Build the web page for a model.

    Args:
        predictor: output of :func:`experiments.attention.look.load_predictor`.

    Raises:
        InputError: Gradio is not installed.
    """
    gradio = _import_gradio()
    detects = isinstance(predictor, CheckpointDetector)
    blocks = block_names(predictor.model)
    # Warm up: the first image is slower, since it loads fonts, allocates buffers and selects kernels.
    blank = np.zeros((480, 640, 3), np.uint8)
    first = Answer(image=blank, size=(640, 480), prediction=look(predictor, blank))
    first.attention(blocks[0])
    if first.prediction.steps:
        blocks.append(BOXES)

    def predict(path: str | None, threshold: float, block: str) -> tuple:
        start = time.perf_counter()
        if path is None:
            return None, "", *nothing
        given = answer(predictor, path)
        if given.problem:
            return given, _paragraph(given.problem, "problem"), *nothing
        everything = shown(given, threshold, block)
        times = (
            f"{given.size[0]}x{given.size[1]} pixels. Model: {1000 * given.prediction.seconds:.0f} ms. In total, with "
            f"reading, preparing and drawing: {1000 * (time.perf_counter() - start):.0f} ms"
        )
        return given, _paragraph(times, "times"), *everything

    def draw_again(given: Answer | None, threshold: float, block: str) -> tuple:
        if given is None:
            missing = "There is no image, or it has expired: drop one."
            return _paragraph(missing, "problem"), *nothing
        return gradio.skip(), *(nothing if given.problem else shown(given, threshold, block))

    def shown(given: Answer, threshold: float, block: str) -> tuple:
        result = given.rows(threshold) if detects else given.probabilities()
        return given.picture(threshold), result, given.attention(block, threshold)

    nothing = (None, None, None)
    title = f"Mobile-Former: {model_label(predictor.options)}, {len(predictor.class_names)} classes"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as page:
        gradio.HTML(f"<h1>{html.escape(title)}</h1>")
        with gradio.Row():
            with gradio.Column():
                file = gradio.File(label="image: drop a file here, or click", height=140, elem_id="file")
                file.async_move_resource_to_block_cache = _without_addresses(file.async_move_resource_to_block_cache)
                message = gradio.HTML(elem_id="message")
                threshold = gradio.Slider(
                    0, 1, 0.3, step=0.01, label="score threshold", visible=detects, elem_id="score"
                )
                if detects:
                    result = gradio.Dataframe(
                        headers=["class", "score", "left", "top", "right", "bottom"],
                        datatype=["str"] + ["number"] * 5,
                        label="detections; box sides in pixels of the image",
                        interactive=False,
                        max_height=300,
                        elem_id="result",
                    )
                else:
                    result = gradio.Label(label="classes", elem_id="result")
            with gradio.Column():
                picture = gradio.Image(
                    show_label=False, format="jpeg", interactive=False, height=480, buttons=[], elem_id="picture"
                )
        block = gradio.Radio(blocks, value=blocks[0], label="the bridge's attention, block by block", elem_id="block")
        attention = gradio.Image(
            show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"], elem_id="attention"
        )
        kept = gradio.State(None, time_to_live=_KEPT)
        chosen, results = [threshold, block], [picture, result, attention]
        gradio.on([file.upload, file.clear], predict, [file, *chosen], [kept, message, *results])
        # While a slider moves, only its latest value is drawn.
        again = {"show_progress": "hidden", "trigger_mode": "always_last"}
        gradio.on([threshold.change, block.input], draw_again, [kept, *chosen], [message, *results], **again)
    return page


def serve(page: "gradio.Blocks", host: str, port: int | None) -> str:
    """Start a server for the page in the background, and return the address of the page.

    Args:
        page: output of :func:`build_page`.
        host: address to listen on.
        port: port to listen on. None: the first free port from 7860.

    Raises:
        InputError: the port is in use, or the address does not belong to this machine.
    """
    gradio = _import_gradio()
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            max_file_size=_LARGEST,
            state_session_capacity=_SESSIONS,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=_STYLE,
            app_kwargs={"middleware": [_policy()]},
        )
    except OSError as error:
        location = f"{host}, port {port}" if port else host
        raise InputError(f"the page cannot be served at {location} ({error}): give another --host or --port") from error
    return address


def _without_addresses(move: Callable) -> Callable:
    """Return a wrapper of Gradio's function ``move`` that raises an error if it gets a URL.

    Gradio calls ``move`` to copy an uploaded file into its cache. Without the wrapper, it would also fetch any URL that
    a visitor sends.

    Args:
        move: asynchronous function that takes the path of a file.
    """

    async def only_uploads(path: str | Path | None) -> str | None:
        if re.match("[a-z]+://", str(path), re.IGNORECASE):
            raise _import_gradio().Error("give a file: addresses are not fetched")
        return await move(path)

    return only_uploads


def _paragraph(text: str, kind: str) -> str:
    role = ' role="alert"' if kind == "problem" else ""
    return f'<p class="{kind}"{role}>{html.escape(text)}</p>'


def _import_gradio() -> ModuleType:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return import_extra("gradio", "app", "the page needs Gradio")


def _policy() -> object:
    """Return Starlette middleware that adds the Content-Security-Policy header to every HTTP response."""
    middleware = importlib.import_module("starlette.middleware")
    return middleware.Middleware(_Policy)


class _Policy:
    """ASGI middleware that adds the Content-Security-Policy header to every HTTP response."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)
