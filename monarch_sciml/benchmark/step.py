"""A whole training step of a Fourier neural operator: one body around our or neuraloperator's layers."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from monarch_sciml.benchmark.harness import Case, Contender
from monarch_sciml.benchmark.peers import to_neuralop
from monarch_sciml.nn import use_pointwise_products
from monarch_sciml.pde.models import can_fuse, fno, fno_monarch

__all__ = ["cases", "matched_models"]


def cases(device: str = "cpu", *, quick: bool = False) -> Iterator[Case]:
    """Forward, loss, backward and Adam, four layers; compared is the prediction before the first step."""
    n, width, modes, batch = (16, 4, 6, 2) if quick else (64, 32, 24, 20)
    ours, peer = matched_models((n, n), (modes, modes), width)
    fixed = fno_monarch((modes, modes), width, (n, n), in_channels=1, out_channels=1, learned=False)
    fixed.load_state_dict(ours.state_dict())
    x, target = torch.randn(2, batch, 1, n, n, device=device)
    contenders = [
        _training("ours, learned", ours.to(device), x, target),
        _training("ours, fixed: an FNO", fixed.to(device), x, target),
        _training("neuraloperator", peer.to(device), x, target, peer=True),
        # what is due to the 1 × 1 convolutions alone
        _training(
            "the same, 1 × 1 as products", use_pointwise_products(deepcopy(peer)).to(device), x, target
        ),
    ]
    yield Case(f"FNO step {n}², 4 layers, width {width}, modes {modes} × {modes}, batch {batch}", contenders)


def matched_models(
    grid: tuple[int, int], n_modes: tuple[int, int], width: int, *, layers: int = 4
) -> tuple[nn.Module, nn.Module]:
    """FNO-Monarch and the FNO with its weights: one channel in, one out."""
    torch.manual_seed(0)
    ours = fno_monarch(n_modes, width, grid, in_channels=1, out_channels=1, layers=layers)
    peer = fno(n_modes, width, in_channels=1, out_channels=1, layers=layers)
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            # a convolution's weights are complex there, and called weight.tensor
            same = (
                to_neuralop(weights[name.removesuffix(".tensor")])
                if parameter.is_complex()
                else weights[name]
            )
            parameter.copy_(same)
    return ours, peer


def _training(name: str, model: nn.Module, x: Tensor, target: Tensor, *, peer: bool = False) -> Contender:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=can_fuse(model))  # as ``pde train``

    def run() -> Tensor:
        y = model(x)
        (y - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()  # last, so that a step leaves behind what it found, and its memory can be told
        return y.detach()

    return Contender(name, run, peer=peer)
