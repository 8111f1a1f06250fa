"""Draws the concepts in images/: mixer matrix, mixing, shift, couplings, TarFlow, memory.

    python docs/draw_concepts.py

The backgrounds are transparent and the colours of middle lightness, for light and dark pages.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from mixer_bijectors import Patchify, Shift
from mixer_bijectors.train.data.bundled import load_photos

IMAGES = Path(__file__).parent / "images"
TEXT, LINE, FAINT = "#808080", "#8c8c8c", "#80808030"
BLUE, ORANGE, GREEN = "#3b82d0", "#e0782f", "#3fa36b"


def blank(figure: Figure, columns: int, ratios: list[float] | None = None) -> list[Axes]:
    """Axes in a row, without frames and ticks."""
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0]
    for axis in axes:
        axis.set_axis_off()
        axis.set_aspect("equal")
    return list(axes)


def save(figure: Figure, name: str) -> None:
    """Write the picture, without a background."""
    figure.savefig(IMAGES / f"{name}.png", dpi=140, transparent=True)


def arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = LINE
) -> None:
    """An arrow between two points."""
    look = {"arrowstyle": "-|>", "color": color, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=look)


def note(
    axis: Axes, x: float, y: float, text: str, color: str = TEXT, **options: object
) -> None:
    """Centred text."""
    defaults: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 10}
    axis.text(x, y, text, color=color, **(defaults | options))


def box(axis: Axes, x: float, y: float, text: str, color: str, **size: float) -> None:
    """A box with rounded corners around a text at its centre."""
    width, height = size.get("width", 0.9), size.get("height", 0.9)
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=f"{color}40",
            edgecolor=color,
            lw=1.6,
        )
    )
    note(axis, x, y, text)


def cells(axis: Axes, rows: int, columns: int, color: Callable[[int, int], str]) -> None:
    """A matrix of squares; row 0 is the uppermost."""
    for row in range(rows):
        for column in range(columns):
            place = (column, rows - 1 - row)
            axis.add_patch(Rectangle(place, 1, 1, fc=color(row, column), ec=LINE, lw=0.8))


def draw_mixer_matrix() -> None:
    """An image cut into patches, and the matrix with a row for each of them."""
    photo = load_photos()[1][:, 40:168:8, 120:248:8]  # the cat's eyes, 16 x 16
    patchify = Patchify((3, 16, 16), 4)
    matrix = patchify.inverse(photo.unsqueeze(0).float())[0].squeeze(0)
    figure = Figure(figsize=(8.4, 3.1), layout="constrained")
    picture, middle, table = blank(figure, 3, [1.0, 0.45, 2.3])
    picture.imshow(photo.permute(1, 2, 0), extent=(0, 4, 4, 0))
    for patch in range(patchify.num_patches):
        row, column = divmod(patch, 4)
        chosen = patch == 6
        picture.add_patch(
            Rectangle(
                (column, row),
                1,
                1,
                fill=False,
                ec=ORANGE if chosen else "white",
                lw=3 if chosen else 1,
            )
        )
        note(picture, column + 0.2, row + 0.22, str(patch), "white", fontsize=8)
    picture.set_title("image (3, 16, 16)", color=TEXT, fontsize=11)
    arrow(middle, (0.0, 0.56), (1.0, 0.56))
    note(middle, 0.5, 0.68, "inverse")
    arrow(middle, (1.0, 0.44), (0.0, 0.44))
    note(middle, 0.5, 0.32, "forward")
    note(middle, 0.5, 0.9, "Patchify", BLUE, fontsize=11, family="monospace")
    middle.set(xlim=(-0.05, 1.05), ylim=(0, 1))
    colours = torch.zeros(16, 48, 3)
    for channel in range(3):
        part = slice(16 * channel, 16 * channel + 16)
        colours[:, part, channel] = matrix[:, part] / 255
    table.imshow(colours, extent=(0, 48, 16, 0), aspect="auto")
    for patch in range(1, 16):
        table.hlines(patch, 0, 48, color="white", lw=0.5)
    table.add_patch(Rectangle((0, 6), 48, 1, fill=False, ec=ORANGE, lw=3, clip_on=False))
    note(table, -0.7, 6.5, "6", ORANGE, ha="right")
    note(table, 24, 17.0, "48 features of a patch: channel, row, column")
    note(table, -2.6, 8, "16 patches", rotation=90)
    table.set(xlim=(-3.4, 48.3), ylim=(17.6, -0.3), aspect="auto")
    table.set_title("mixer matrix (16, 48)", color=TEXT, fontsize=11)
    save(figure, "mixer_matrix")


def draw_mixing() -> None:
    """Which vectors of the mixer matrix channel mixing and patch mixing hand to their flow."""
    figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    by_row, by_column = blank(figure, 2)
    tints = [BLUE, ORANGE, GREEN]

    def row_colour(row: int, _: int) -> str:
        return f"{tints[row % 3]}90"

    def column_colour(_: int, column: int) -> str:
        return f"{tints[column % 3]}90"

    for axis, name, colour, lines in (
        (by_row, "ChannelMixing(flow)", row_colour, "row"),
        (by_column, "PatchMixing(flow)", column_colour, "column"),
    ):
        cells(axis, 6, 8, colour)
        axis.set_title(name, color=TEXT, fontsize=11, family="monospace")
        axis.set(xlim=(-1.4, 12.6), ylim=(-4.3, 6.9))
        note(axis, -0.8, 3, "patches", rotation=90)
        note(axis, 4, 6.5, "features")
        note(axis, 4, -3.9, f"every {lines} on its own, the same weights for all")
    for row in range(6):
        arrow(by_row, (8.2, 5.5 - row), (9.7, 4.25 - row * 0.5), tints[row % 3])
    box(by_row, 11, 3, "flow", LINE, width=2.4, height=3.4)
    for column in range(8):
        start, end = (column + 0.5, -0.2), (2.25 + column * 0.5, -1.5)
        arrow(by_column, start, end, tints[column % 3])
    box(by_column, 4, -2.3, "flow", LINE, width=4.4, height=1.4)
    save(figure, "mixing")


def draw_shift() -> None:
    """The patches of a layer and of a shifted layer on a photograph."""
    shape, patch = (3, 64, 64), 16
    photo = load_photos()[1][:, 40:168:2, 120:248:2]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    plain, shifted = blank(figure, 2)

    def grid(axis: Axes, corner: int, inner: tuple[int, int, int], title: str) -> None:
        axis.imshow(photo.permute(1, 2, 0))
        rows, columns = Patchify(inner, patch).grid
        for row in range(rows):
            for column in range(columns):
                place = (corner + column * patch - 0.5, corner + row * patch - 0.5)
                axis.add_patch(
                    Rectangle(place, patch, patch, fill=False, color="white", lw=1.5)
                )
        axis.set_title(title, color=TEXT)

    grid(plain, 0, shape, "a layer: 16 patches")
    inner = Shift.inner_shape(shape, patch)
    grid(shifted, patch // 2, inner, "inside Shift: 9 patches and a frame")
    save(figure, "shift")


def draw_couplings() -> None:
    """What one number of the transformed part depends on, in five kinds of couplings."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    # Nine patches of six features; in their grid of 3 x 3, patch 5 is right of the middle.
    patch, feature, around = 5, 4, {1, 2, 4, 5, 7, 8}
    halves = [[feature >= 3 for feature in range(6)]] * 9
    panels: list[tuple[str, str, list[list[bool]], Callable[[int, int], bool]]] = [
        ("ChannelMixing(\nCoupling(6))", "its own patch", halves, lambda p, _: p == patch),
        (
            "PatchMixing(\nCoupling(9))",
            "its own feature",
            [[patch >= 4] * 6 for patch in range(9)],
            lambda _, f: f == feature,
        ),
        (
            "MatrixCoupling(9, 6,\nnet=PatchConv)",
            "the patches around it",
            halves,
            lambda p, _: p in around,
        ),
        ("MatrixCoupling(9, 6,\nnet=Mixer)", "all patches", halves, lambda *_: True),
        (
            'MatrixCoupling(9, 6,\naxis="patches")',
            "every other patch",
            [[patch % 2 == 1] * 6 for patch in range(9)],
            lambda *_: True,
        ),
    ]
    for axis, (name, what, moved, reads) in zip(blank(figure, len(panels)), panels):

        def colour(row: int, column: int, moved: Any = moved, reads: Any = reads) -> str:
            if moved[row][column]:
                return ORANGE if (row, column) == (patch, feature) else f"{ORANGE}45"
            return f"{BLUE}c0" if reads(row, column) else FAINT

        cells(axis, 9, 6, colour)
        axis.set_title(name, color=TEXT, fontsize=9, family="monospace")
        note(axis, 3, -0.8, f"reads {what}", BLUE, fontsize=9)
        axis.set(xlim=(-0.3, 6.3), ylim=(-1.3, 9.2))
    save(figure, "couplings")


def draw_tarflow() -> None:
    """A block of TarFlow from data to latent."""
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    (axis,) = blank(figure, 1)
    step = 2.0
    box(axis, 2.5 * step, 2.2, "causal Transformer", BLUE, width=5.9 * step, height=0.8)
    for patch in range(6):
        x = patch * step
        box(axis, x, 0, f"$x_{patch}$", GREEN)
        box(axis, x, 4.6, f"$z_{patch}$", ORANGE)
        arrow(axis, (x + 0.2, 0.5), (x + 0.2, 1.75), BLUE)
        axis.plot([x - 0.2, x - 0.2], [0.5, 1.75], color=LINE, lw=1.6)  # and on behind the box
        arrow(axis, (x - 0.2, 2.65), (x - 0.2, 4.1))
        if patch < 5:
            arrow(axis, (x + 0.25, 2.65), (x + step - 0.3, 4.1), BLUE)
            note(axis, x + 1.35, 3.2, f"$s_{patch + 1}, t_{patch + 1}$", BLUE, fontsize=9)
    note(
        axis,
        2.5 * step,
        5.7,
        "$z_i = (x_i - t_i)\\ e^{-s_i}$,   where $s_i, t_i$ read $x_0 \\ldots x_{i-1}$",
    )
    note(axis, -1.3, 0, "data", GREEN, ha="right")
    note(axis, -1.3, 4.6, "latent", ORANGE, ha="right")
    note(axis, 2.5 * step, -1.0, "the next block reads the patches from last to first")
    axis.set(xlim=(-2.6, 11.2), ylim=(-1.4, 6.2))
    save(figure, "tarflow_block")


def draw_reversible() -> None:
    """What the memory holds in a plain and in a reversible chain."""
    figure = Figure(figsize=(6.9, 3.2), layout="constrained")
    (axis,) = blank(figure, 1)
    step = 2.4

    def states(y: float, colours: str, caption: str) -> None:
        for state, color in enumerate(colours):
            box(
                axis, state * step, y, f"$x_{state}$", {"k": ORANGE, "b": BLUE}.get(color, LINE)
            )
        note(axis, -1.1, y, caption, ha="right")

    for y, colours, caption in (
        (4.2, "kkkkk", "plain,\nafter forward"),
        (2.2, "k---k", "reversible,\nafter forward"),
    ):
        states(y, colours, caption)
        for state in range(4):
            arrow(axis, (state * step + 0.55, y), ((state + 1) * step - 0.55, y))
            note(axis, (state + 0.5) * step, y + 0.35, f"$f_{state + 1}$", fontsize=9)
    states(0.0, "kbbbk", "reversible,\nin backward")
    for state in range(4, 0, -1):
        arrow(axis, (state * step - 0.55, 0), ((state - 1) * step + 0.55, 0), BLUE)
        work = f"$f_{state}^{{-1}},\\ \\nabla f_{state}$" if state > 1 else "$\\nabla f_1$"
        note(axis, (state - 0.5) * step, 0.4, work, BLUE, fontsize=9)
    note(axis, 1.1, 5.3, "kept in memory", ORANGE)
    note(axis, 4.0, 5.3, "not kept")
    note(axis, 7.9, 5.3, "computed again, one at a time", BLUE)
    axis.set(xlim=(-4.0, 10.4), ylim=(-0.7, 5.7))
    save(figure, "reversible")


def main() -> None:
    """Draw all of them."""
    draw_mixer_matrix()
    draw_mixing()
    draw_shift()
    draw_couplings()
    draw_tarflow()
    draw_reversible()


if __name__ == "__main__":
    main()
