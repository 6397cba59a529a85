"""``python -m experiments.figures``: draw the documentation's figures of the models, as SVG files."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

import mobile_former
from detection.models.variants import E2E_VARIANTS
from mobile_former.mobile import Lite
from mobile_former.multiply_adds import madds_by_module
from mobile_former.training.cli.command import run_command
from mobile_former.training.run.figures import COLOURS

SHOWN = "mobile_former_294m"
TIMES = "\N{MULTIPLICATION SIGN}"

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, *_, GREY = COLOURS
MOBILE, FORMER, BRIDGE = BLUE, ORANGE, GREEN

# Parts of a model in the order of the figure: a pattern of the modules that make up the part, and a colour.
PARTS = {
    "stem": (r"backbone\.stem", GREY),
    "Mobile": (r"backbone\.blocks\.\d+", MOBILE),
    "dynamic ReLU": (r"backbone\.blocks\.\d+\.mobile\.\w*relu\d?", YELLOW),
    "Mobile→Former": (r"backbone\.blocks\.\d+\.to_former", GREEN),
    "Former": (r"backbone\.blocks\.\d+\.former", FORMER),
    "Former→Mobile": (r"backbone\.blocks\.\d+\.to_mobile", SKY),
    "classifier": (r"classifier", PINK),
}
DARK_INK = {"dynamic ReLU", "Former→Mobile", "stem"}  # white numbers would be hard to read on these


@dataclass(frozen=True)
class Style:
    """Colours of text and lines for one of the two colour schemes of the documentation site.

    Attributes:
        name: name of the scheme, "light" or "dark".
        ink: colour of text and arrows.
        faint: colour of grids and frames.
    """

    name: str
    ink: str
    faint: str


STYLES = (Style("light", "#222222", "#bbbbbb"), Style("dark", "#e6e6e6", "#666a75"))


def main() -> None:
    """Draw all figures, each for the light and for the dark colour scheme."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures", description="Draw the documentation's figures.", allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, default=Path("docs/pictures"), help="folder to write")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    madds = {name: madds_by_part(name) for name in mobile_former.list_models()}
    shapes = block_shapes(SHOWN)
    for style in STYLES:
        figures = {
            "block": draw_block(shapes, style),
            "shapes": draw_shapes(shapes, style),
            "madds": draw_madds(madds, style),
            "detector": draw_detector(style),
        }
        for name, figure in figures.items():
            # Reproducible files, without date and random names; text stays text.
            with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
                figure.savefig(folder / f"{name}-{style.name}.svg", transparent=True, metadata={"Date": None})
    print(f"written: {folder}/")


def madds_by_part(name: str) -> dict[str, int]:
    """Return the multiply-adds of each part of a published model for an image of 224×224 pixels.

    The result is a dictionary from the names in :data:`PARTS` to numbers of multiply-adds. Together, the parts are the
    whole model.
    """
    by_module = madds_by_module(mobile_former.create_model(name))
    madds = {
        part: sum(count for module, count in by_module.items() if re.fullmatch(pattern, module))
        for part, (pattern, _) in PARTS.items()
    }
    # The pattern of Mobile matches whole blocks, including lite blocks: subtract the other parts of the blocks.
    inside = ("dynamic ReLU", "Mobile→Former", "Former", "Former→Mobile")
    return madds | {"Mobile": madds["Mobile"] - sum(madds[part] for part in inside)}


@dataclass(frozen=True)
class BlockShape:
    """Input and output shapes of the stem (first convolution) or of a block, for an image of 224×224 pixels.

    Attributes:
        kind: ``"stem"``, ``"lite"`` (block without tokens), ``"down"`` (block that halves height and width of the
            feature map) or ``"same"`` (block that keeps them).
        before: channels, height and width of the input feature map.
        after: channels, height and width of the output feature map.
        tokens: number and dimension of the tokens.
    """

    kind: str
    before: tuple[int, int, int]
    after: tuple[int, int, int]
    tokens: tuple[int, int]


def block_shapes(name: str) -> list[BlockShape]:
    """Return the shapes of the feature maps and tokens in a published model, for an image of 224×224 pixels.

    The list has one :class:`BlockShape` for the stem and one for each block, in the order of the forward pass.
    """
    model = mobile_former.create_model(name).eval()
    shapes = []

    def hook(kind: str):
        def note(module, inputs, output):
            after = output[0] if isinstance(output, tuple) else output
            shapes.append(
                BlockShape(kind, tuple(inputs[0].shape[1:]), tuple(after.shape[1:]), tuple(model.backbone.tokens.shape))
            )

        return note

    model.backbone.stem.register_forward_hook(hook("stem"))
    for block in model.backbone.blocks:
        kind = "lite" if isinstance(block, Lite) else "down" if block.downsamples else "same"
        block.register_forward_hook(hook(kind))
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    return shapes


def draw_block(shapes: list[BlockShape], style: Style) -> Figure:
    """Draw a diagram of a Mobile-Former block: its four parts, their order and their inputs.

    The shapes in the diagram are those of the eighth block of a model.

    Args:
        shapes: output of :func:`block_shapes` for the model.
        style: colours of text and lines.
    """
    block = shapes[8]  # the eighth block, which adds channels
    figure, axis = _canvas(10, 4.1)
    top, bottom = 3.4, 0.7
    _plain(axis, 0.85, top, f"tokens\n{_times(block.tokens)}", style)
    _plain(axis, 0.85, bottom, f"map\n{_times(block.before)}", style)
    _plain(axis, 9.3, top, f"tokens\n{_times(block.tokens)}", style)
    _plain(axis, 9.3, bottom, f"map\n{_times(block.after)}", style)
    gather = _box(axis, 2.75, top, 1.75, 1.1, "1 Mobile→Former", BRIDGE, "each token gathers\nfrom all positions")
    former = _box(axis, 5.0, top, 1.75, 1.1, "2 Former", FORMER, "tokens exchange\nwith each other")
    inside = f"1{TIMES}1, dynamic ReLU,\n3{TIMES}3 depthwise, dynamic ReLU, 1{TIMES}1"
    mobile = _box(axis, 4.55, bottom, 2.6, 1.1, "3 Mobile", MOBILE, inside)
    give = _box(axis, 7.4, bottom, 1.75, 1.1, "4 Former→Mobile", BRIDGE, "each position gathers\nfrom all tokens")
    _arrow(axis, (1.5, top), (gather[0], top), style)
    _arrow(axis, (gather[1], top), (former[0], top), style)
    _arrow(axis, (former[1], top), (8.55, top), style)
    _arrow(axis, (1.5, bottom), (mobile[0], bottom), style)
    _arrow(axis, (mobile[1], bottom), (give[0], bottom), style)
    _arrow(axis, (give[1], bottom), (8.55, bottom), style)
    _arrow(axis, (2.3, bottom), (2.3, top - 0.55), style)
    _arrow(axis, (5.0, top - 0.55), (5.0, bottom + 0.55), style, dashed=True)
    _arrow(axis, (7.4, top), (7.4, bottom + 0.55), style)
    axis.text(2.4, 2.05, "keys and values,\nnot projected", color=style.ink, fontsize=9.5, va="center")
    axis.text(5.1, 2.05, "the first token sets\nthe slopes", color=style.ink, fontsize=9.5, va="center")
    axis.text(7.5, 2.05, "keys and values", color=style.ink, fontsize=9.5, va="center")
    return figure


def draw_shapes(shapes: list[BlockShape], style: Style) -> Figure:
    """Draw a bar chart of the number of values in the feature map after the stem and after each block.

    A line shows the number of values in the tokens. ``shapes`` is the output of :func:`block_shapes`.
    """
    figure, axis = _plot(10, 4.3, style)
    colours = {"stem": GREY, "lite": SKY, "down": ORANGE, "same": BLUE}
    labels = {
        "stem": "stem",
        "lite": "lite block, without tokens",
        "down": "block that halves the map",
        "same": "block",
    }
    tokens = shapes[-1].tokens[0] * shapes[-1].tokens[1]
    for number, shape in enumerate(shapes):
        channels, height, width = shape.after
        values = channels * height * width
        axis.bar(number, values, 0.72, color=colours[shape.kind], label=labels.pop(shape.kind, None))
        text = f"{channels}\n{height}{TIMES}{width}"
        axis.text(number, values * 1.1, text, ha="center", va="bottom", fontsize=9, color=style.ink)
    label = f"tokens: {_times(shapes[-1].tokens)} = {tokens} numbers in every block"
    axis.axhline(tokens, color=GREEN, linewidth=2.5, label=label)
    axis.set_yscale("log")
    axis.set_ylim(600, 1.6e6)
    axis.set_xticks(range(len(shapes)), ["stem", *map(str, range(1, len(shapes)))])
    axis.set_xlabel("stem and blocks; above each bar: channels and size of the map")
    axis.set_ylabel("numbers in a map")
    _legend(axis, style, loc="upper right", ncols=2)
    return figure


def draw_madds(madds: dict[str, dict[str, int]], style: Style) -> Figure:
    """Draw a stacked bar for each model that shows the percentage of its multiply-adds in each part.

    Args:
        madds: dictionary from the name of a model to the result of :func:`madds_by_part`.
        style: colours of text and lines.
    """
    figure, axis = _plot(10, 4.6, style)
    names = list(madds)[::-1]  # the smallest at the top
    left = dict.fromkeys(names, 0.0)
    for part, (_, colour) in PARTS.items():
        shares = {name: 100 * madds[name][part] / sum(madds[name].values()) for name in names}
        axis.barh(names, shares.values(), 0.7, left=list(left.values()), color=colour, label=part)
        for row, name in enumerate(names):
            if shares[name] > 4:
                ink = "black" if part in DARK_INK else "white"
                middle = left[name] + shares[name] / 2
                axis.text(middle, row, f"{shares[name]:.0f}", color=ink, ha="center", va="center", fontsize=9)
            left[name] += shares[name]
    for row, name in enumerate(names):
        axis.text(101, row, f"{sum(madds[name].values()) / 1e6:.0f} M", color=style.ink, va="center", fontsize=10)
    axis.set_xlim(0, 108)
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlabel("per cent of the multiply-adds at 224 px; right: total")
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper center", ncols=7, frameon=False, labelcolor=style.ink,
        fontsize=9.5, columnspacing=1.2, handlelength=1.2,
    )  # fmt: skip
    return figure


def draw_detector(style: Style) -> Figure:
    """Draw a diagram of the detector E2E-MF: the blocks at three scales, and the queries that all blocks update."""
    name = SHOWN.replace("mobile_former", "e2e_mf")
    variant = E2E_VARIANTS[name]
    figure, axis = _canvas(10, 4.4)
    lanes = {32: 0.85, 16: 1.95, 8: 3.05}
    for stride, height in lanes.items():
        _plain(axis, 1.05, height, f"backbone's map\nat 1/{stride}", style)
    ends: dict[int, float] = {}
    x = 2.85
    for number, (stride, _) in enumerate(variant.blocks):
        height = lanes[stride]
        if stride not in ends:
            _arrow(axis, (1.85, height), (x - 0.3, height), style)
            if ends:
                before = max(ends, key=ends.get)
                _arrow(axis, (ends[before], lanes[before] + 0.33), (x - 0.05, height - 0.33), style)
        else:
            _arrow(axis, (ends[stride], height), (x - 0.3, height), style)
        axis.plot([x, x], [height + 0.33, 4.0], color=style.faint, linewidth=1.2, zorder=0)
        _box(axis, x, height, 0.6, 0.66, str(number + 1), MOBILE)
        ends[stride] = x + 0.3
        x += 0.72
    axis.add_patch(Rectangle((2.3, 3.82), x - 2.3 - 0.3, 0.36, color=FORMER))
    text = f"{variant.queries} queries pass every block, and predict classes and boxes after each"
    axis.text((2.3 + x - 0.3) / 2, 4.0, text, color="white", ha="center", va="center", fontsize=10.5)
    _plain(axis, 1.05, 4.0, "queries", style)
    _arrow(axis, (1.7, 4.0), (2.3, 4.0), style)
    _arrow(axis, (x - 0.3, 4.0), (x + 0.1, 4.0), style)
    axis.text(
        ends[8] + 0.15, lanes[8], f"maps of {variant.width}\nchannels", color=style.ink, va="center", fontsize=9.5
    )
    return figure


def _times(shape: tuple[int, ...]) -> str:
    return TIMES.join(map(str, shape))


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a tuple (empty figure, its axes). Coordinates are inches, and the axes are invisible."""
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set_xlim(0, width)
    axis.set_ylim(0, height)
    return figure, axis


def _plot(width: float, height: float, style: Style) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("none")
    axis.tick_params(colors=style.ink)
    for side, spine in axis.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(style.faint)
    axis.xaxis.label.set_color(style.ink)
    axis.yaxis.label.set_color(style.ink)
    return figure, axis


def _legend(axis: Axes, style: Style, **options) -> None:
    axis.legend(frameon=False, labelcolor=style.ink, fontsize=9.5, **options)


def _box(
    axis: Axes, x: float, y: float, width: float, height: float, title: str, colour: str, text: str = ""
) -> tuple[float, float]:
    """Draw a coloured box that contains a title and an optional text. The centre of the box is at ``(x, y)``.

    Returns:
        Tuple with the x coordinates of the left and the right side of the box.
    """
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.08"
    axis.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor="none"))
    lift = 0.3 if text else 0
    axis.text(x, y + lift, title, color="white", ha="center", va="center", fontsize=11, fontweight="bold")
    axis.text(x, y - 0.16, text, color="white", ha="center", va="center", fontsize=9)
    return x - width / 2, x + width / 2


def _plain(axis: Axes, x: float, y: float, text: str, style: Style) -> None:
    axis.text(x, y, text, color=style.ink, ha="center", va="center", fontsize=10.5)


def _arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], style: Style, *, dashed: bool = False
) -> None:
    line = "dashed" if dashed else "solid"
    patch = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=13,
        color=style.ink,
        linestyle=line,
        linewidth=1.4,
        shrinkA=0,
        shrinkB=0,
    )
    axis.add_patch(patch)


if __name__ == "__main__":
    run_command(main)
