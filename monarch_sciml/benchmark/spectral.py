"""One spectral convolution of an FNO: learned transforms, neuraloperator's FFT, a pruned FFT."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from monarch_sciml.benchmark.harness import Case, Contender
from monarch_sciml.benchmark.peers import PrunedFFTConv, from_neuralop, neuralop_conv
from monarch_sciml.nn import MonarchSpectralConv

__all__ = ["GROWING", "PEER", "SIZES", "cases", "contenders", "forward", "forward_backward"]

PEER = "neuraloperator"
FIXED = "fixed DFT: "
# batch, channels, grid points an axis, modes: n_modes=(2m, 2m) in neuraloperator's words
SIZES = ((20, 32, 64, 12), (8, 64, 128, 16), (4, 64, 256, 32))
# the same number of points, and of kept modes, on ever finer grids
# every mode, transforms that stay the DFT: where FFTs have the least to do in vain
FULL = (4, 32, 128, 64)
GROWING = ((64, 32, 64, 12), (16, 32, 128, 12), (4, 32, 256, 12), (1, 32, 512, 12))


def cases(device: str = "cpu", *, quick: bool = False) -> Iterator[Case]:
    """Forward, then forward + backward; then the cost as the work grows, in nanoseconds a point."""
    for title, sizes in (("", SIZES), (FIXED, (FULL,)), ("growing grid: ", GROWING)):
        for B, C, n, m in sizes:
            if quick:
                B, C, n, m = max(B // 8, 1), C // 8, n // 4, m // 4
            models, x = contenders(B, C, n, m, device, learned=title != FIXED)
            name = f"{title}{n}², modes {m}, batch {B}, channels {C}"
            if sizes is not GROWING:
                yield Case(f"{name}, forward", [forward(*c, x, peer=c[0] == PEER) for c in models])
            yield Case(
                f"{name}, forward + backward",
                [forward_backward(*c, x, peer=c[0] == PEER) for c in models],
                points=x.numel() if sizes is GROWING else None,
            )


def contenders(
    B: int, C: int, n: int, m: int, device: str = "cpu", *, learned: bool = True
) -> tuple[list[tuple[str, nn.Module]], Tensor]:
    """Three layers with the same weights, by name, and an input (B, C, n, n)."""
    torch.manual_seed(0)
    ours = MonarchSpectralConv(C, C, (2 * m, 2 * m), grid=(n, n), learned=learned).to(device)
    models = [
        ("ours, learned" if learned else "ours, fixed", ours),
        (PEER, neuralop_conv(ours)),
        ("pruned rfft2", PrunedFFTConv(ours)),
    ]
    return models, torch.randn(B, C, n, n, device=device)


def forward(name: str, model: nn.Module, x: Tensor, *, peer: bool = False) -> Contender:
    """The layer without gradients."""
    return Contender(name, torch.no_grad()(partial(model, x)), peer=peer)


def forward_backward(name: str, model: nn.Module, x: Tensor, *, peer: bool = False) -> Contender:
    """The layer with the gradients of x and of all parameters, those of learned transforms included.

    Compared are those that all have: of the output, x, weight and bias.
    """
    x = x.detach().clone().requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    parameters = dict(model.named_parameters())

    def run() -> list[Tensor]:
        y = model(x)
        return [y, *torch.autograd.grad(y, [x, *parameters.values()], upstream)]

    def compared(result: list[Tensor]) -> list[Tensor]:
        y, grad_x, *rest = result
        grads = {
            name.removesuffix(".tensor").split(".")[-1]: g for name, g in zip(parameters, rest, strict=True)
        }
        return [y, grad_x, _our_order(model, grads["weight"]), grads["bias"]]

    return Contender(name, run, peer=peer, compared=compared)


def _our_order(model: nn.Module, weight: Tensor) -> Tensor:
    if isinstance(model, PrunedFFTConv):
        return torch.view_as_real(weight)
    return from_neuralop(weight) if weight.is_complex() else weight
