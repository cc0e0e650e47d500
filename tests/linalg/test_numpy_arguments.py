"""Arrays of NumPy where a tensor is wanted are refused by name; its integers are as good as others."""

import numpy as np
import pytest
import torch

from monarch_sciml import InputError, MonarchMatrix, linalg, project
from monarch_sciml.linalg import (
    Cropped,
    FourierTransform,
    Selection,
    SeparableTransform,
    StridePermutation,
    dft,
    factorize,
    fit,
    fourier_factors,
    hadamard,
    identity,
    permutation,
    project_padded,
    truncated_dft,
)

A, v = np.eye(16), np.arange(16.0)
FACTORS = fourier_factors(4, 4, 0)
OPERATORS = [
    identity(16),
    dft(16),
    StridePermutation(4, 4),
    Selection(torch.arange(16), 16),
    Cropped(identity(20), (16, 16)),
    identity(16) + identity(16),
    2 * identity(16),
    FourierTransform((16, 16)),
    SeparableTransform(torch.eye(16), torch.eye(16)),
    linalg.FactoredTransform(FACTORS, FACTORS),
]


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
@pytest.mark.parametrize("x", [A, A.tolist()], ids=["array", "list"])
def test_operators_are_called_with_tensors(operator, x):
    with pytest.raises(InputError, match=r"a tensor; found (ndarray|list); convert it with torch.as_tensor"):
        operator(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda: MonarchMatrix(A[None], A[None]),
        lambda: SeparableTransform(A, A),
        lambda: Selection(np.arange(4), 4),
        lambda: identity(16).solve(v),
        lambda: project(A),
        lambda: project_padded(A, (3, 3)),
        lambda: linalg.choose_blocks(A, 0.5),
        lambda: fit(A, A, (4, 4)),
        lambda: factorize(A),
        lambda: permutation(np.arange(4)),
        lambda: permutation([1, 0]),
        lambda: linalg.block_diagonal(A[None]),
        lambda: linalg.circulant(v),
        lambda: linalg.toeplitz(v),
        lambda: linalg.hankel(v),
        lambda: linalg.convolution([1.0, 2.0], 4),
        lambda: linalg.afdf(v, v),
        lambda: linalg.acdc(v, v),
        lambda: linalg.kronecker(A, A),
        lambda: linalg.butterfly(np.zeros((2, 2, 2, 2))),
        lambda: linalg.hd3(v, v, v),
        lambda: linalg.absorb(identity(16), rows=v),
        lambda: linalg.absorb(identity(16), columns=v),
        lambda: linalg.from_block_layout(A[None], A[None]),
    ],
)
def test_functions_take_tensors(call):
    with pytest.raises(InputError, match=r"a tensor; found (ndarray|list); convert it with torch.as_tensor"):
        call()


def test_integers_of_numpy_are_sizes():
    n = np.int64(16)
    x = torch.randn(16, dtype=torch.float64)
    assert torch.equal(dft(n)(x.to(torch.complex128)), dft(16)(x.to(torch.complex128)))
    assert torch.equal(truncated_dft(n, np.int64(5)).to_dense(torch.complex128), _truncated())
    for make in (hadamard, linalg.dct, linalg.dst, identity, linalg.centered_dft):
        made, expected = make(n), make(16)
        if not isinstance(made, torch.Tensor):
            made, expected = made(x), expected(x)
        assert torch.equal(made, expected)


def _truncated():
    return truncated_dft(16, 5).to_dense(torch.complex128)


def test_block_counts_are_a_pair():
    expected = project(torch.eye(16), (4, 2)).to_dense()
    assert torch.equal(project(torch.eye(16), np.array([4, 2])).to_dense(), expected)
    assert torch.equal(project_padded(torch.eye(16), (np.int64(4), np.int64(2))).to_dense(), expected)
    for call in (project, project_padded, lambda A, nblocks: fit(A, A, nblocks)):
        for nblocks in (4, (4, 4, 4), (4.0, 4.0)):
            with pytest.raises(InputError, match=r"block counts \(J, K\), of L and of R; found .*; pass two"):
                call(torch.eye(16), nblocks)
