import pytest
import torch
from laws import assert_adjoint, assert_linear, assert_unitary, relative_error

from monarch_sciml import InputError
from monarch_sciml.linalg import (
    FactoredTransform,
    FourierTransform,
    SeparableTransform,
    centered_dft,
    fourier_factors,
)

SIZES = [(8, 8), (7, 12), (1, 5), (13, 13), (16, 9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("coils", [(), (1,), (3,)])
def test_fourier_transform_is_unitary_and_has_its_adjoint(size, coils):
    A = FourierTransform((*coils, *size))
    for operator in (A, A.H):
        assert_adjoint(operator)
        assert_linear(operator)
        assert_unitary(operator)
    assert_adjoint(A, dtype=torch.complex64, tol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_fourier_transform_is_its_formula(size):
    H, W = size
    x = torch.randn(2, H, W, dtype=torch.complex128)
    assert relative_error(FourierTransform(size)(x), centered_dft(H) @ x @ centered_dft(W).mT) < 1e-13


def test_the_origin_is_at_the_centre():
    point = torch.zeros(6, 5, dtype=torch.complex128)
    point[3, 2] = 1
    assert relative_error(FourierTransform((6, 5))(point), torch.full_like(point, 30**-0.5)) < 1e-14


@pytest.mark.parametrize("shapes", [((5, 8), (3, 6)), ((4, 4), (7, 9)), ((9, 2), (2, 9))])
@pytest.mark.parametrize("planes", [(), (2,)])
def test_separable_transform(shapes, planes):
    A, B = (torch.randn(*shape, dtype=torch.complex128) for shape in shapes)
    T = SeparableTransform(A, B, planes)
    assert T.domain == (*planes, shapes[0][1], shapes[1][1])
    assert T.codomain == (*planes, shapes[0][0], shapes[1][0])
    assert_adjoint(T)
    assert_linear(T)
    if not planes:
        assert relative_error(T.to_dense(torch.complex128), torch.kron(A, B)) < 1e-14


@pytest.mark.parametrize("size", [(6, 12), (16, 20), (7, 9), (4, 13)])
@pytest.mark.parametrize("planes", [(), (3,)])
def test_factored_transform(size, planes):
    H, W = size
    exact = FactoredTransform(*(fourier_factors(n, n, -(n // 2), origin=n // 2) for n in size), planes)
    x = torch.randn(2, *planes, H, W, dtype=torch.complex128)
    assert relative_error(exact(x), FourierTransform((*planes, H, W))(x)) < 1e-13
    random = [tuple(torch.randn_like(f) for f in fourier_factors(n, n, 0)) for n in size]
    T = FactoredTransform(*random, planes)
    assert T.domain == T.codomain == (*planes, H, W)
    assert_adjoint(T)
    assert_linear(T)
    assert_adjoint(T.H)
    maps = torch.randn(3, H, W, dtype=torch.complex128)
    coils = torch.randn(2, 3, H, W, dtype=torch.complex128)
    assert relative_error(T.combine(coils, maps), (maps.conj() * T(coils)).sum(-3)) < 1e-14


def test_products_of_operators_on_images_check_their_domains():
    A, B = FourierTransform((3, 4, 5)), FourierTransform((4, 5))
    assert (A @ A.H).domain == (3, 4, 5)
    with pytest.raises(InputError, match=r"expected \(3, 4, 5\) on the right"):
        A @ B
    with pytest.raises(InputError, match=r"found shape \(5, 4\)"):
        B @ torch.zeros(5, 4)
    with pytest.raises(InputError, match="only those can be added"):
        FourierTransform((4, 5)) + FourierTransform((5, 4))
    x = torch.randn(4, 5, dtype=torch.complex128)
    assert relative_error((B + 2j * B) @ x, (1 + 2j) * B(x)) < 1e-14
    assert (2 * B).codomain == (B + B).codomain == (4, 5)
