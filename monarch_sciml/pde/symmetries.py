"""Symmetries of two-dimensional flow on the torus: what each makes of a solution is another solution."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from monarch_sciml.errors import InputError

__all__ = ["Symmetries", "apply_symmetry", "check_symmetries", "n_symmetries"]

Symmetries = Literal["none", "forced", "unforced"]


def n_symmetries(symmetries: Symmetries, n: int) -> int:
    """How many there are on n × n points, the identity among them: 1, 4 n or 8 n²."""
    return {"none": 1, "forced": 4 * n, "unforced": 8 * n * n}[symmetries]


def apply_symmetry(w: Tensor, symmetries: Symmetries, elements: Sequence[int] | Tensor) -> Tensor:
    """Vorticity moved by a symmetry of w_t + u·∇w = ν Δw + f, of every sample by one of its own.

    Args:
        w: (N, …, n, n), points i/n along either axis.
        symmetries: "unforced", f = 0: translations by whole points, times the eight that keep a square.
            "forced", f = 0.1 (sin 2π(x + y) + cos 2π(x + y)): translations along (1, −1), times the half turn
            (x, y) → (1/4 − x, −y) and the mirror (x, y) → (y, x + 1/2). A mirror exchanges clockwise and
            counterclockwise, so that w changes its sign.
        elements: a number from 0, the identity, to ``n_symmetries(symmetries, n)`` for each sample.

    Returns:
        w(g⁻¹ x), times det g.

    Raises:
        InputError: the grid is not square, or, if forced, n is no multiple of 4.
    """
    check_symmetries(symmetries, tuple(w.shape[-2:]))
    if symmetries == "none":
        return w
    n = w.shape[-1]
    rest = torch.as_tensor(elements, device=w.device)[:, None, None]
    i, j = torch.arange(n, device=w.device)[:, None], torch.arange(n, device=w.device)
    turned, rest = rest % 2, rest // 2
    mirrored, rest = rest % 2, rest // 2
    if symmetries == "forced":
        i, j = i - rest, j + rest
        i, j = torch.where(turned == 1, n // 4 - i, i), torch.where(turned == 1, -j, j)
        i, j = torch.where(mirrored == 1, j, i), torch.where(mirrored == 1, i - n // 2, j)
        sign = 1 - 2 * mirrored
    else:
        swapped, rest = rest % 2, rest // 2
        i, j = i - rest % n, j - rest // n
        i, j = torch.where(turned == 1, -i, i), torch.where(mirrored == 1, -j, j)
        i, j = torch.where(swapped == 1, j, i), torch.where(swapped == 1, i, j)
        sign = 1 - 2 * ((turned + mirrored + swapped) % 2)
    source = (i % n * n + j % n).flatten(1)
    extra = (1,) * (w.ndim - 3)
    flat = w.flatten(-2)
    moved = flat.gather(-1, source.view(len(w), *extra, n * n).expand_as(flat))
    return moved.view_as(w) * sign.view(-1, *extra, 1, 1)


def check_symmetries(symmetries: Symmetries, grid: tuple[int, ...], channels: int = 1) -> None:
    """Whether data of this shape can have them; raises ``InputError``."""
    if symmetries not in get_args(Symmetries):
        known = ", ".join(get_args(Symmetries))
        raise InputError(f"symmetries, one of {known}", repr(symmetries), "use one of these")
    if symmetries == "none":
        return
    if len(grid) != 2 or grid[0] != grid[1] or channels != 1:
        raise InputError(
            "the vorticity of two-dimensional flow on a square, one channel on n × n points",
            f"{channels} channels on a grid of {' × '.join(map(str, grid))}",
            "train without symmetries",
        )
    if symmetries == "forced" and grid[0] % 4:
        raise InputError(
            "a number of points that 4 divides, for the half turn by a quarter of the period",
            f"{grid[0]}",
            "train without symmetries, or keep another part of the points",
        )
