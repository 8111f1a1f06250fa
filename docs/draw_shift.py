"""Draws images/shift.png: the patches of a layer and of a shifted layer on a photograph.

python docs/draw_shift.py
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mixer_bijectors import Patchify, Shift
from mixer_bijectors.train.data.bundled import load_photos

IMAGE, PATCH = (3, 64, 64), 16


def draw_grid(axis: Axes, photo: Tensor, corner: int, shape: tuple[int, int, int]) -> None:
    """The photograph with the grid of an image of that shape at that corner."""
    axis.imshow(photo.permute(1, 2, 0))
    patchify = Patchify(shape, PATCH)
    rows, columns = patchify.grid
    for row in range(rows):
        for column in range(columns):
            place = (corner + column * PATCH - 0.5, corner + row * PATCH - 0.5)
            axis.add_patch(Rectangle(place, PATCH, PATCH, fill=False, color="white", lw=1.5))
    axis.set(xticks=[], yticks=[])


def main() -> None:
    """Draw both grids side by side."""
    photo = load_photos()[1][:, 40:168:2, 120:248:2]  # the cat's eyes
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    plain, shifted = figure.subplots(1, 2)
    draw_grid(plain, photo, 0, IMAGE)
    plain.set_title("a layer: 16 patches")
    inner = Shift.inner_shape(IMAGE, PATCH)
    draw_grid(shifted, photo, PATCH // 2, inner)
    shifted.set_title("inside Shift: 9 patches and a frame")
    figure.savefig(Path(__file__).parent / "images" / "shift.png", dpi=110)


if __name__ == "__main__":
    main()
