"""Operators that are made, multiplied and applied inside of what ``torch.compile`` traces."""

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError
from monarch_sciml.linalg import (
    FourierTransform,
    MonarchMatrix,
    Product,
    StridePermutation,
    acdc,
    centered_dft,
    circulant,
    dft,
    hd3,
    toeplitz,
    truncated_dft,
)

L, R = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
L, R = L[..., :3], R[:, :3]  # 3 blocks of 4 × 3 and of 3 × 4
M = MonarchMatrix(L, R)
OPERATORS = {
    "product": lambda c: Product(M, MonarchMatrix(L * c[0], R)),
    "adjoint": lambda c: MonarchMatrix(L * c[0], R).H,
    "gram": lambda c: MonarchMatrix(L * c[0], R).gram,
    "inverse": lambda c: MonarchMatrix(L[:, :3] * c[0], R[..., :3]).inverse(),
    "dft": lambda _: dft(12),
    "truncated": lambda _: truncated_dft(12, 5),
    "circulant": circulant,
    "toeplitz": toeplitz,
    "acdc": lambda c: acdc(c, c),
    "hd3": lambda c: hd3(*c[:8].expand(3, 8)),
}
COMPLEX = ("dft", "truncated", "circulant", "toeplitz")


# torch says this of itself, when it traces a function with a backward pass of its own
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_matrices_made_of_parameters_compile_without_graph_breaks():
    c, x = torch.randn(2, 12, dtype=torch.float64).unbind()

    def apply(c, x):
        found = []
        for name, make in OPERATORS.items():
            A = make(c)
            found.append(A((x.to(torch.complex128) if name in COMPLEX else x)[: A.shape[1]]))
        return found

    found = torch.compile(apply, fullgraph=True, backend="eager")(c, x)
    for one, other in zip(found, apply(c, x), strict=True):
        assert relative_error(one, other) < 1e-14


def test_the_centred_matrix_is_made_while_tracing():
    F = centered_dft(15)
    x = torch.randn(15, 2, dtype=torch.complex128)
    found = torch.compile(lambda x: centered_dft(15) @ x, fullgraph=True, backend="eager")(x)
    assert relative_error(found, F @ x) < 1e-14
    assert relative_error(F @ x, dft(15, centered=True) @ x) < 1e-14


def test_a_product_of_what_does_not_fit_is_refused():
    with pytest.raises(
        InputError, match=r"12 rows on the right of an operator of shape \(12, 12\).*\(6, 6\)"
    ):
        Product(M, StridePermutation(2, 3))
    with pytest.raises(InputError, match=r"\(3, 4\) on the right.*found shape \(4, 3\); check the order"):
        Product(FourierTransform((3, 4)), FourierTransform((4, 3)))
