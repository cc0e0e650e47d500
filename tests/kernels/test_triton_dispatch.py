"""Backend 'triton' can be asked for, and says what it needs."""

import os
import sys

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError, kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":  # has to be said before the kernels are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.mark.parametrize("blocks", [False, True])
def test_monarch_product(blocks):
    pytest.importorskip("triton")
    x, L, R = (torch.randn(shape, device=DEVICE) for shape in ((3, 12), (4, 5, 3), (3, 4, 4)))
    found = kernels.monarch_multiply(x, L, R, blocks=blocks, backend="triton")
    assert relative_error(found, kernels.monarch_multiply(x, L, R, blocks=blocks, backend="gemm")) < 1e-6


def test_spectral_convolution():
    pytest.importorskip("triton")
    shapes = (2, 3, 6, 5), (2, 4, 6), (2, 3, 5), (4, 3, 3, 2, 2), (2, 6, 4), (2, 5, 3), (2,)
    x, Ea, Wa, weight, Es, Ws, bias = (torch.randn(shape, device=DEVICE) for shape in shapes)
    found, expected = (
        kernels.spectral_convolution(x, (Ea, Wa), weight, (Es, Ws), bias=bias, backend=backend)
        for backend in ("triton", "gemm")
    )
    assert relative_error(found, expected) < 1e-6


def test_without_triton(monkeypatch):
    monkeypatch.delitem(sys.modules, "monarch_sciml.kernels.triton", raising=False)
    monkeypatch.delattr(kernels, "triton", raising=False)
    monkeypatch.setitem(sys.modules, "monarch_sciml.kernels.triton", None)
    x, L, R = torch.randn(3, 12), torch.randn(4, 5, 3), torch.randn(3, 4, 4)
    with pytest.raises(InputError, match="expected Triton for backend 'triton'; found none installed; pip"):
        kernels.monarch_multiply(x, L, R, backend="triton")
