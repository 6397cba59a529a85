"""The page of the app, and the server behind it."""

import html
import importlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from detection.pictures import caption, with_detections
from detection.predict import CheckpointDetector
from experiments.attention.figures import draw_boxes, draw_bridge
from experiments.attention.look import Look, Predictor, look
from experiments.attention.recording import block_names
from mobile_former.errors import InputError
from mobile_former.training.data.images import ImageError, read_image, resize
from mobile_former.training.extras import import_extra

if TYPE_CHECKING:
    import gradio


_BOXES = "boxes"  # stands among the blocks: the boxes after each of them
_LONGEST = 1024  # pixels of the picture on the page
_LARGEST = "200mb"  # of an uploaded file
_KEPT = 1800  # seconds: how long an image is kept, for other blocks to be drawn
_SESSIONS = 10  # whose last image is kept, to draw other blocks of
# Nothing from elsewhere, whatever Gradio's page asks for.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:"
)
_STYLE = """
.problem { color: #b3261e; font-weight: 600; overflow-wrap: anywhere; }
.dark .problem { color: #ffb4ab; }
"""


@dataclass(frozen=True)
class Answer:
    """An image file seen by a model.

    Attributes:
        problem: why it was not seen; empty where it was.
        image: ``(H, W, 3)`` uint8, at most 1024 pixels long.
        size: width and height of the file's image in pixels.
        seen: what the model saw and said.
    """

    problem: str = ""
    image: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    seen: Look | None = None

    def picture(self, score_threshold: float = 0.3) -> Image.Image:
        """The image, with what was found in it."""
        found = [each for each in self.seen.above(score_threshold) if "box" in each]
        scale = self.image.shape[1] / self.size[0]
        return with_detections(
            self.image,
            [[scale * value for value in each["box"]] for each in found],
            [each["label"] for each in found],
            [caption(each["class"], each["score"]) for each in found],
        )

    def rows(self, score_threshold: float = 0.3) -> list[list]:
        """Of detections class, score, left, top, right and bottom, in pixels."""
        found = self.seen.above(score_threshold)
        return [[each["class"], round(each["score"], 3), *(round(value) for value in each["box"])] for each in found]

    def probabilities(self) -> dict[str, float]:
        """Of a classifier's best classes."""
        return {each["class"]: each["probability"] for each in self.seen.answer}

    def attention(self, block: str, score_threshold: float = 0.3) -> Image.Image:
        """The bridge's attention in a block, or with ``boxes`` E2E-MF's boxes after each."""
        seen = self.seen
        title = seen.told(score_threshold)
        if block == _BOXES:
            figure = draw_boxes(seen.image, seen.steps, seen.class_names, score_threshold=score_threshold, title=title)
        else:
            chosen = [each for each in seen.blocks if each.name == block]
            figure = draw_bridge(seen.image, chosen, queries=seen.queries(score_threshold), title=title)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def answer(predictor: Predictor, path: str | Path) -> Answer:
    """Predict an image file, or say why it cannot be read."""
    try:
        image = read_image(path)
    except (ImageError, FileNotFoundError) as error:
        # Where the file lies on this machine is nobody's concern.
        return Answer(problem=str(error).replace(str(path), Path(path).name))
    height, width = image.shape[:2]
    scale = min(1.0, _LONGEST / max(height, width))
    small = resize(image, max(1, round(scale * height)), max(1, round(scale * width)))
    return Answer(image=small, size=(width, height), seen=look(predictor, image))


def build_page(predictor: Predictor) -> "gradio.Blocks":
    """The page of a model.

    Args:
        predictor: as :func:`experiments.attention.__main__.load_predictor` gives it.

    Raises:
        InputError: Gradio is not installed.
    """
    gradio = _import_gradio()
    detects = isinstance(predictor, CheckpointDetector)
    blocks = block_names(predictor.module.model)
    # The first image would wait for fonts and buffers, and for kernels to be chosen.
    blank = np.zeros((480, 640, 3), np.uint8)
    first = Answer(image=blank, size=(640, 480), seen=look(predictor, blank))
    first.attention(blocks[0])
    if first.seen.steps:
        blocks.append(_BOXES)

    def predict(path: str | None, threshold: float, block: str) -> tuple:
        start = time.perf_counter()
        if path is None:
            return None, "", *nothing
        given = answer(predictor, path)
        if given.problem:
            return given, _paragraph(given.problem, "problem"), *nothing
        everything = shown(given, threshold, block)
        times = (
            f"{given.size[0]}x{given.size[1]} pixels. The model: {1000 * given.seen.seconds:.0f} ms; all in all, with "
            f"reading, preparing and drawing: {1000 * (time.perf_counter() - start):.0f} ms"
        )
        return given, _paragraph(times, "times"), *everything

    def draw_again(given: Answer | None, threshold: float, block: str) -> tuple:
        if given is None:
            missing = "There is no image, or it was given too long ago: drop one."
            return _paragraph(missing, "problem"), *nothing
        return gradio.skip(), *(nothing if given.problem else shown(given, threshold, block))

    def shown(given: Answer, threshold: float, block: str) -> tuple:
        said = given.rows(threshold) if detects else given.probabilities()
        return given.picture(threshold), said, given.attention(block, threshold)

    nothing = (None, None, None)
    title = f"Mobile-Former: {predictor.module.label}, {len(predictor.class_names)} classes"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(_KEPT, _KEPT)) as page:
        gradio.HTML(f"<h1>{html.escape(title)}</h1>")
        with gradio.Row():
            with gradio.Column():
                file = gradio.File(label="an image: drop it here, or click", height=140, elem_id="file")
                file.async_move_resource_to_block_cache = _without_addresses(file.async_move_resource_to_block_cache)
                told = gradio.HTML(elem_id="told")
                threshold = gradio.Slider(0, 1, 0.3, step=0.01, label="least score", visible=detects, elem_id="score")
                if detects:
                    said = gradio.Dataframe(
                        headers=["class", "score", "left", "top", "right", "bottom"],
                        datatype=["str"] + ["number"] * 5,
                        label="what was found; sides in pixels of the image",
                        interactive=False,
                        max_height=300,
                        elem_id="said",
                    )
                else:
                    said = gradio.Label(label="classes", elem_id="said")
            with gradio.Column():
                picture = gradio.Image(
                    show_label=False, format="jpeg", interactive=False, height=480, buttons=[], elem_id="picture"
                )
        block = gradio.Radio(blocks, value=blocks[0], label="the bridge's attention, block by block", elem_id="block")
        attention = gradio.Image(
            show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"], elem_id="attention"
        )
        kept = gradio.State(None, time_to_live=_KEPT)
        chosen, results = [threshold, block], [picture, said, attention]
        gradio.on([file.upload, file.clear], predict, [file, *chosen], [kept, told, *results])
        # A slider on its way is drawn as often as there is time.
        again = {"show_progress": "hidden", "trigger_mode": "always_last"}
        gradio.on([threshold.change, block.input], draw_again, [kept, *chosen], [told, *results], **again)
    return page


def serve(page: "gradio.Blocks", host: str, port: int | None) -> str:
    """Serve a page without waiting for its end; returns its address.

    Args:
        page: as :func:`build_page` gives it.
        host: address to listen on.
        port: default: the first free one from 7860 on.

    Raises:
        InputError: the port is taken, or the address is none of this machine's.
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
        place = f"{host}, port {port}" if port else host
        raise InputError(f"the page cannot be served at {place} ({error}): give another --host or --port") from error
    return address


def _without_addresses(move: Callable) -> Callable:
    """What takes an input's file in, but for addresses, which Gradio would fetch for whoever asks the server."""

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
    """What tells the browser to load nothing from elsewhere."""
    middleware = importlib.import_module("starlette.middleware")
    return middleware.Middleware(_Policy)


class _Policy:
    """An ASGI application around another, whose answers it gives a Content-Security-Policy."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)
