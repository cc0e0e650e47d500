"""Transforms of coil images and the normal operator of SENSE: learned or exact Monarch against the FFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from monarch_sciml.benchmark.harness import Case, Contender
from monarch_sciml.linalg import FourierTransform
from monarch_sciml.mri.masks import MaskConfig, draw_mask
from monarch_sciml.mri.operators import encoding
from monarch_sciml.nn import LearnedFourier

__all__ = ["cases", "normal", "transform"]

GRIDS = ((320, 320), (640, 368))
COILS = 16


def cases(device: str = "cpu", *, quick: bool = False) -> Iterator[Case]:
    """The transform of all coils, without and with gradients; then AᴴA under a column mask."""
    shrink, coils = (8, 2) if quick else (1, COILS)
    grids = [(H // shrink, W // shrink) for H, W in GRIDS]
    for grid in grids:
        for backward in (False, True):
            yield transform(grid, coils, device, backward=backward)
    for grid in grids:
        yield from normal(grid, coils, device)


def transform(grid: tuple[int, int], coils: int, device: str, *, backward: bool = False) -> Case:
    """The learned transform against the centred orthonormal FFT, of shifts and FFT as MRI code has it.

    The bare FFT is given shifted data and its output is shifted to be compared: what a method can save that
    keeps its data so.
    """
    torch.manual_seed(0)
    shape, axes = (coils, *grid), (-2, -1)
    learned, centred = LearnedFourier(grid).to(device), FourierTransform(shape)
    x = torch.randn(shape, dtype=torch.complex64, device=device)
    corner = torch.fft.ifftshift(x, dim=axes)
    with torch.no_grad():
        by_factors = learned.operator(shape)

    def bare(x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")

    name = f"transform {grid[0]} × {grid[1]}, {coils} coils, forward"
    if not backward:
        contenders = [
            Contender("ours, learned", torch.no_grad()(lambda: by_factors(x))),
            Contender("centred FFT", lambda: centred(x), peer=True),
            Contender("bare FFT", lambda: bare(corner), compared=lambda X: torch.fft.fftshift(X, dim=axes)),
        ]
        return Case(name, contenders)
    upstream = torch.randn(shape, dtype=torch.complex64, device=device)

    def gradients(function: Callable[[Tensor], Tensor], *parameters: Tensor) -> Callable[[], list[Tensor]]:
        leaf = x.clone().requires_grad_()

        def run() -> list[Tensor]:
            y = function(leaf)
            return [y, *torch.autograd.grad(y, [leaf, *parameters], upstream)]

        return run

    ours = gradients(lambda x: learned.operator(shape)(x), *learned.parameters())
    contenders = [
        # the factors' gradients are part of the work, but nobody else has them
        Contender("ours, learned", ours, compared=lambda result: result[:2]),
        Contender("centred FFT", gradients(centred), peer=True),
    ]
    return Case(f"{name} + backward", contenders)


def normal(grid: tuple[int, int], coils: int, device: str) -> Iterator[Case]:
    """``AᴴA`` with every fourth column or so: sampling, transform and coils in turn against one operator.

    Then with the gradient of the image, as networks that unroll conjugate gradients take it.
    """
    torch.manual_seed(0)
    maps = torch.randn(coils, *grid, dtype=torch.complex64, device=device)
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    A = encoding(maps, draw_mask(MaskConfig("random"), grid, 0).pattern.to(device))
    x, upstream = torch.randn(2, *grid, dtype=torch.complex64, device=device)
    gram, adjoint = A.gram, A.H
    leaf = x.clone().requires_grad_()

    def both(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        y = function(leaf)
        return [y, *torch.autograd.grad(y, leaf, upstream)]

    name = f"SENSE normal operator {grid[0]} × {grid[1]}, {coils} coils, 4× columns"
    contenders = [
        Contender("ours, gram", lambda: gram(x)),
        Contender("AᴴA in turn, FFT", lambda: adjoint(A(x)), peer=True),
    ]
    yield Case(name, contenders)
    contenders = [
        Contender("ours, gram", lambda: both(gram)),
        Contender("AᴴA in turn, FFT", lambda: both(lambda x: adjoint(A(x))), peer=True),
    ]
    yield Case(f"{name}, forward + backward", contenders)
