"""Monarch against dense: a linear layer, and the bare product over matrix sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from monarch_sciml.benchmark.harness import Case, Contender
from monarch_sciml.benchmark.peers import copied_multiply
from monarch_sciml.kernels import monarch_dense, monarch_multiply
from monarch_sciml.kernels.dispatch import Backend
from monarch_sciml.linalg import balanced_factors
from monarch_sciml.nn import MonarchLinear

__all__ = ["cases", "product"]

LAYERS = ((768, 3072), (3072, 768))
LAYER_ROWS = 4096
SIZES, ROWS = (256, 1024, 4096), 2048


def cases(device: str = "cpu", *, quick: bool = False) -> Iterator[Case]:
    """The layer with its gradients; then the product without and with them, in nanoseconds a number of x."""
    shrink = 16 if quick else 1
    for inputs, outputs in LAYERS:
        yield layer(inputs // shrink, outputs // shrink, LAYER_ROWS // shrink, device)
    for n in SIZES:
        for backward in (False, True):
            yield product(n // shrink, ROWS // shrink, device, backward=backward)


def layer(inputs: int, outputs: int, rows: int, device: str) -> Case:
    """``MonarchLinear`` with four blocks against the ``nn.Linear`` of the same map, forward + backward."""
    torch.manual_seed(0)
    ours = MonarchLinear(inputs, outputs, nblocks=4).to(device)
    dense = ours.to_linear()
    x = torch.randn(rows, inputs, device=device)
    contenders = [
        _with_gradients("ours, 4 blocks", ours, x, list(ours.parameters())),
        _with_gradients("nn.Linear", dense, x, list(dense.parameters()), peer=True),
    ]
    return Case(f"layer {inputs} → {outputs}, {rows} rows, forward + backward", contenders)


def product(
    n: int,
    rows: int,
    device: str,
    *,
    backward: bool = False,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 1e-5,
    backends: Sequence[Backend] = ("auto",),
) -> Case:
    """An n × n Monarch matrix of about √n blocks a factor times ``rows`` vectors: ours, copying, dense.

    Where less than float32 is asked for, the outputs are compared with those in float64.
    """
    torch.manual_seed(0)
    p, q = balanced_factors(n)
    L, R = torch.randn(p, q, p) / p**0.5, torch.randn(p, p, q) / q**0.5
    L, R, x = (t.to(device, dtype) for t in (L, R, torch.randn(rows, n)))
    M = monarch_dense(L.double(), R.double())

    def dense(x: Tensor, M: Tensor) -> Tensor:
        return x @ M.mT

    ways: list[tuple[str, Callable[..., Tensor], list[Tensor], bool]] = [
        *((_ours(b), partial(monarch_multiply, backend=b), [L, R], False) for b in backends),
        ("two bmm with copies", copied_multiply, [L, R], False),
        ("dense", dense, [M.to(dtype)], True),
    ]
    name = f"product n = {n}, {p} blocks, {rows} rows, forward"
    if not backward:
        contenders = [Contender(way, partial(f, x, *w), peer=peer) for way, f, w, peer in ways]
    else:
        name += " + backward"
        contenders = [
            _with_gradients(way, lambda x, f=f, w=w: f(x, *w), x, w, peer=peer) for way, f, w, peer in ways
        ]
    reference = None
    if tolerance > 1e-5:
        reference = [x.double() @ M.mT]
        reference += [_upstream(reference[0]).to(dtype).double() @ M] if backward else []
    return Case(name, contenders, tolerance, points=x.numel(), reference=reference)


def _ours(backend: Backend) -> str:
    return "ours" if backend == "auto" else f"ours, {backend}"


def _with_gradients(
    name: str,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    parameters: list[Tensor],
    *,
    peer: bool = False,
) -> Contender:
    """Output and all gradients; compared are the output and the gradient of x, which all ways have."""
    x = x.detach().clone().requires_grad_()
    upstream = _upstream(function(x))
    for parameter in parameters:
        parameter.requires_grad_()

    def run() -> list[Tensor]:
        y = function(x)
        return [y, *torch.autograd.grad(y, [x, *parameters], upstream)]

    return Contender(name, run, peer=peer, compared=lambda result: result[:2])


def _upstream(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
