"""Monarch matrices and the operator algebra around them."""

from itertools import product

import pytest
import torch
from laws import assert_adjoint, assert_linear, assert_unitary, relative_error

from monarch_sciml import InputError, LinearOperator, MonarchMatrix
from monarch_sciml.linalg import StridePermutation, dft

# (J, S, K, I), and the rank of slices where it is not one
BLOCKS = [
    (3, 3, 3, 3),
    (3, 4, 4, 3),
    (2, 5, 3, 7),
    (1, 6, 1, 5),
    (5, 1, 7, 1),
    (3, 4, 4, 3, 3),
    (2, 5, 3, 7, 2),
]
DTYPES = [torch.float64, torch.complex128]


def monarch(blocks, dtype=torch.complex128, batch=()):
    J, S, K, I, T = (*blocks, 1)[:5]
    L, R = torch.randn(*batch, J, S, K * T, dtype=dtype), torch.randn(*batch, K, J * T, I, dtype=dtype)
    return MonarchMatrix(L, R)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_entries_follow_the_definition(blocks, dtype):
    J, S, K, I, T = (*blocks, 1)[:5]
    M = monarch(blocks, dtype)
    dense = M.to_dense()
    assert M.shape == dense.shape == (S * J, K * I)
    assert (M.nblocks, M.rank) == ((J, K), T)
    for ell, j, k, i in product(range(S), range(J), range(K), range(I)):
        entry = M.L[j, ell, k * T : k * T + T] @ M.R[k, j * T : j * T + T, i]
        assert abs(entry - dense[ell * J + j, k * I + i]) < 1e-14
    slices = dense.view(S, J, K, I).permute(1, 2, 0, 3)
    assert (torch.linalg.matrix_rank(slices) == min(S, T, I)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_products_with_tensors_follow_matmul(blocks, dtype):
    M = monarch(blocks, dtype)
    dense, n = M.to_dense(), M.shape[1]
    for shape in ((n,), (n, 4), (2, n, 4), (2, 3, n, 1)):
        x = torch.randn(shape, dtype=dtype)
        assert relative_error(M @ x, dense @ x) < 1e-14
    x = torch.randn(2, 3, n, dtype=dtype)
    assert relative_error(M(x), x @ dense.mT) < 1e-14


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_the_adjoint_is_the_conjugate_transpose(blocks, dtype):
    M = monarch(blocks, dtype)
    assert_adjoint(M, dtype=dtype)
    assert_linear(M, dtype=dtype)
    assert relative_error(M.H.to_dense(dtype), M.to_dense().mH) < 1e-14


def test_single_precision():
    M = monarch((5, 7, 6, 9, 2), torch.float32)  # the path compiled for CPUs, where there is one
    x, y = torch.randn(54), torch.randn(35)
    assert relative_error(M @ x, M.to_dense() @ x) < 1e-6
    assert relative_error(M.H @ y, M.to_dense().mT @ y) < 1e-6


@pytest.mark.parametrize("batch", [(2,), (12,), (2, 3)], ids=str)
def test_a_batch_of_matrices_broadcasts_like_matmul(batch):
    M = monarch((3, 2, 4, 3, 2), batch=batch)  # 6 × 12; with 12 matrices a mix-up of axes would go unnoticed
    dense = M.to_dense()
    assert dense.shape == (*batch, 6, 12)
    for shape in ((12,), (12, 5), (12, 12), (*batch, 12, 5), (4, *[1] * len(batch), 12, 5)):
        x = torch.randn(shape, dtype=torch.complex128)
        assert relative_error(M @ x, dense @ x) < 1e-14
    assert relative_error(M.H.to_dense(torch.complex128), dense.mH) < 1e-14
    assert relative_error((M @ M.H).to_dense(torch.complex128), dense @ dense.mH) < 1e-13


def test_products_sums_and_multiples_compose():
    A, B = monarch((3, 3, 3, 3)), monarch((3, 3, 3, 3))
    C = monarch((2, 2, 3, 3))
    a, b, c = A.to_dense(), B.to_dense(), C.to_dense()
    cases: list[tuple[LinearOperator, torch.Tensor]] = [
        (C @ A, c @ a),
        (A + B, a + b),
        (3 * A, 3 * a),
        (A * 0.5, 0.5 * a),
        ((1 - 2j) * A, (1 - 2j) * a),
        (C @ (2j * A + B.H) @ B, c @ (2j * a + b.mH) @ b),
        (StridePermutation(3, 3) @ A, a.reshape(3, 3, 9).transpose(0, 1).reshape(9, 9)),
    ]
    for operator, dense in cases:
        assert operator.shape == dense.shape
        assert relative_error(operator.to_dense(torch.complex128), dense) < 1e-14
        assert relative_error(operator.H.to_dense(torch.complex128), dense.mH) < 1e-14
        assert_adjoint(operator)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 5), (3, 4), (4, 3), (7, 2)])
def test_the_stride_permutation_reads_with_stride_q(p, q):
    Pi = StridePermutation(p, q)
    x = torch.arange(p * q)
    assert Pi(x).tolist() == [a * q + b for b in range(q) for a in range(p)]
    assert Pi.H(Pi(x)).equal(x)
    assert_adjoint(Pi)
    assert_unitary(Pi)


def test_gradients_reach_the_factors():
    L, R = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(2, 2, 3, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (L, R, x)]
    assert torch.autograd.gradcheck(lambda L, R, x: MonarchMatrix(L, R).H @ (MonarchMatrix(L, R) @ x), inputs)


# (J, K, T): square blocks S = K·T and I = J·T; odd and even permutations of every origin
SQUARE = [
    (3, 4, 1),
    (2, 2, 1),
    (2, 3, 1),
    (3, 2, 1),
    (2, 3, 2),
    (3, 2, 3),
    (3, 3, 3),
    (7, 2, 1),
    (3, 6, 1),
    (1, 5, 1),
    (4, 1, 2),
]


def square(J, K, T, dtype, batch=()):
    return monarch((J, K * T, K, J * T, T), dtype, batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [(), (2,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("blocks", [(3, 4, 1), (2, 3, 2), (3, 3, 1), (3, 2, 3)])
def test_solving_inverts_the_dense_matrix(blocks, batch, dtype):
    M = square(*blocks, dtype, batch)
    inverse, n = torch.linalg.inv(M.to_dense()), M.shape[1]
    for shape in ((n,), (n, 3), (n, n), (*batch, n, 3), (4, *[1] * len(batch), n, 2)):
        b = torch.randn(shape, dtype=dtype)
        assert relative_error(M.solve(b), inverse @ b) < 1e-9
        assert b.ndim == 1 or relative_error(M @ M.solve(b), b + 0 * (M @ b)) < 1e-9
        assert relative_error(M.inverse() @ b, inverse @ b) < 1e-9
    assert relative_error(M.inverse().to_dense(dtype), inverse) < 1e-9
    assert relative_error(M.inverse().H.to_dense(dtype), inverse.mH) < 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", SQUARE)
def test_determinant_and_trace_are_those_of_the_dense_matrix(blocks, dtype):
    for batch in ((), (2, 3)):
        M = square(*blocks, dtype, batch)
        dense = M.to_dense()
        assert relative_error(M.det(), torch.linalg.det(dense)) < 1e-10
        for found, expected in zip(M.slogdet(), torch.linalg.slogdet(dense), strict=True):
            assert (found - expected).abs().max() < 1e-10
        assert relative_error(M.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1)) < 1e-13


def test_the_trace_needs_no_square_blocks():
    for blocks in ((3, 4, 2, 6), (4, 3, 6, 2, 2), (1, 6, 3, 2)):
        M = monarch(blocks, batch=(2,))
        assert relative_error(M.trace(), M.to_dense().diagonal(dim1=-2, dim2=-1).sum(-1)) < 1e-14


def test_the_dft_is_solved_by_its_inverse():
    M, x = dft(30).A, torch.randn(30, dtype=torch.complex128)
    assert relative_error(M.solve(x), M.H @ x) < 1e-14
    assert M.slogdet()[1].abs() < 1e-13
    assert abs(M.det().abs() - 1) < 1e-13


def test_real_factors_take_complex_right_hand_sides():
    M, b = square(2, 3, 1, torch.float64), torch.randn(6, 2, dtype=torch.complex128)
    assert relative_error(M.solve(b), torch.linalg.solve(M.to_dense() + 0j, b)) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_solutions_and_determinants(dtype):
    M = square(2, 3, 1, dtype)
    inputs = [t.detach().requires_grad_() for t in (M.L, M.R, torch.randn(6, 2, dtype=dtype))]
    b = inputs.pop()
    assert torch.autograd.gradcheck(lambda L, R, b: MonarchMatrix(L, R).solve(b), [*inputs, b])
    assert torch.autograd.gradcheck(lambda L, R, b: MonarchMatrix(L, R).inverse() @ b, [*inputs, b])
    for quantity in ("det", "trace"):
        assert torch.autograd.gradcheck(lambda L, R, f=quantity: getattr(MonarchMatrix(L, R), f)(), inputs)
    assert torch.autograd.gradcheck(lambda L, R: MonarchMatrix(L, R).slogdet()[1], inputs)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_solutions_of_batches_by_vmap_and_compiled():
    def solve(L, R, b):
        return torch.stack((MonarchMatrix(L, R).solve(b), MonarchMatrix(L, R).inverse() @ b))

    M, b = square(3, 4, 1, torch.float64, batch=(2,)), torch.randn(2, 12, dtype=torch.float64)
    expected = [solve(*one) for one in zip(M.L, M.R, b, strict=True)]
    assert relative_error(torch.vmap(solve)(M.L, M.R, b), torch.stack(expected)) < 1e-12
    compiled = torch.compile(
        lambda L, R, b: MonarchMatrix(L, R).solve(b), fullgraph=True, backend="aot_eager"
    )
    assert relative_error(compiled(M.L[0], M.R[0], b[0]), expected[0][0]) < 1e-12


def test_singular_blocks_are_named():
    M = square(3, 2, 2, torch.float64)
    M.L[1, 0] = M.L[1, 2]
    with pytest.raises(
        InputError, match=r"found block 1 of L singular to working precision; a Monarch matrix"
    ):
        M.solve(torch.randn(12))
    with pytest.raises(InputError, match="block 1 of L"):
        M.inverse()
    assert abs(M.det()) < 1e-12
    M = square(3, 2, 1, torch.float64, batch=(2,))
    M.R[1, 0] = 0
    with pytest.raises(InputError, match=r"block \(1, 0\) of R singular"):
        M.inverse()
    assert M.det()[1] == 0
    assert M.slogdet()[1][1] == -torch.inf
    M.R[1, 0] = torch.nan
    with pytest.raises(InputError, match="of R singular"):
        M.solve(torch.randn(6, dtype=torch.float64))


def test_what_cannot_be_solved_is_refused():
    M = monarch((3, 4, 2, 6), torch.float64)  # square, but for its blocks
    for wanted in ("inverse", "det", "slogdet"):
        with pytest.raises(
            InputError, match=rf"square blocks in both factors for {wanted}; found blocks of 4 × 2"
        ):
            getattr(M, wanted)()
    with pytest.raises(
        InputError, match=r"4 × 2 in L and 3 × 6 in R; choose S = K·T and I = J·T, or take to_"
    ):
        M.solve(torch.randn(12))
    M = square(2, 3, 1, torch.float64)
    for shape in ((5,), (2, 5), (6, 2, 3), ()):
        with pytest.raises(InputError, match=r"6 rows in a right-hand side"):
            M.solve(torch.randn(shape))
    with pytest.raises(InputError, match=r"a square matrix; found shape \(10, 21\)"):
        monarch((2, 5, 3, 7)).trace()


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_inverses_adjoints_products_and_sums_compose_in_batches(batch):
    A, B = square(3, 4, 1, torch.complex128, batch), square(2, 3, 2, torch.complex128, batch)
    a, b, Pi = A.to_dense(), B.to_dense(), StridePermutation(4, 3)
    cases: list[tuple[LinearOperator, torch.Tensor]] = [
        (A @ B, a @ b),
        (A.H @ B, a.mH @ b),
        (A + B.H, a + b.mH),
        (A.inverse() @ B, torch.linalg.solve(a, b)),
        ((A @ B).H @ (2j * A + B.inverse()), (a @ b).mH @ (2j * a + torch.linalg.inv(b))),
        (Pi @ A @ dft(12), Pi.to_dense(torch.complex128) @ a @ dft(12).to_dense(torch.complex128)),
    ]
    for operator, dense in cases:
        x = torch.randn(*batch, 12, 5, dtype=torch.complex128)
        assert relative_error(operator @ x, dense @ x) < 1e-9
        assert relative_error(operator.to_dense(torch.complex128), dense) < 1e-9
        assert relative_error(operator.H.to_dense(torch.complex128), dense.mH) < 1e-9


def test_operators_print_their_shape():
    M = monarch((3, 4, 4, 3), torch.float64)
    assert repr(M) == "MonarchMatrix(12, 12) with (3, 4) blocks of rank 1, torch.float64"
    assert repr(StridePermutation(3, 4) @ M) == f"StridePermutation(12, 12) @ {M!r}"
    assert "(12, 12)" in repr(M + M)


def test_a_learned_number_multiplies_an_operator():
    M, x = monarch((2, 3, 3, 2)), torch.randn(6, dtype=torch.complex128)
    scale = torch.tensor(1.5 - 2j, dtype=torch.complex128, requires_grad=True)
    assert relative_error((scale * M) @ x, (1.5 - 2j) * (M @ x)) < 1e-15
    assert_adjoint(scale.detach() * M)
    (gradient,) = torch.autograd.grad(((M * scale).H @ x).real.sum(), scale)
    assert gradient.abs() > 0


def test_a_complex_matrix_stays_complex():
    M = monarch((2, 3, 3, 2))
    assert torch.equal(M.to_dense(torch.float64), M.to_dense())
    assert M.to_dense(torch.float32).dtype == torch.complex64
    assert monarch((2, 3, 3, 2), torch.float64).to_dense(torch.float32).dtype == torch.float32


def test_errors_name_the_remedy():
    L, R = torch.randn(3, 4, 2), torch.randn(2, 3, 5)
    with pytest.raises(InputError, match=r"factors L .*; found L \(3, 4, 2\) and R \(3, 2, 5\)"):
        MonarchMatrix(L, R.transpose(0, 1))
    with pytest.raises(InputError, match=r"equal batch dimensions.*expand the smaller factor"):
        MonarchMatrix(L.expand(2, 3, 4, 2), R)
    with pytest.raises(InputError, match=r"factors of one dtype; found torch.float32 and torch.float64"):
        MonarchMatrix(L, R.double())
    M = MonarchMatrix(L, R)
    with pytest.raises(InputError, match=r"10 rows on the right .*\(12, 10\); found shape \(3, 9\)"):
        M @ torch.randn(3, 9)
    with pytest.raises(InputError, match="check the order of the product"):
        M @ dft(12)
    with pytest.raises(InputError, match="last dimension of 10"):
        M(torch.randn(9))
    with pytest.raises(InputError, match=r"equal shape \(12,\) × \(10,\); found \(10,\) × \(12,\)"):
        M + M.H
    for operator in (StridePermutation(2, 6), dft(12)):
        for shape in ((11,), (2, 24), ()):
            with pytest.raises(InputError, match=r"a last dimension of 12; found x .*; move that axis"):
                operator(torch.randn(shape))


def test_only_operators_tensors_and_numbers_take_part():
    M, array = monarch((2, 3, 3, 2), torch.float64), torch.ones(6).numpy()
    for other in (array, [1.0] * 6, 3):
        with pytest.raises(InputError, match=r"a tensor or an operator on the right; found .*; convert with"):
            M @ other
    for other in (torch.eye(6), 1):
        with pytest.raises(InputError, match=r"an operator to add; found (Tensor|int); add A.to_dense\(\)"):
            M + other
    for other in (M, torch.eye(6), "2"):
        with pytest.raises(InputError, match=r"one number to multiply with; found .*; operators multiply"):
            M * other
    with pytest.raises(TypeError, match="unsupported operand"):
        array @ M
    x = torch.randn(6, dtype=torch.float64)
    assert torch.equal((array[0] * M) @ x, M @ x)


def test_one_vector_meets_every_matrix_of_a_batch_in_products_too():
    A, B = (MonarchMatrix(torch.randn(5, 2, 3, 2), torch.randn(5, 2, 2, 3)) for _ in range(2))
    x = torch.randn(6)
    dense = A.to_dense() @ B.to_dense()
    assert relative_error((A @ B) @ x, dense @ x) < 1e-5
    assert relative_error(A @ x, A.to_dense() @ x) < 1e-6
    assert ((A @ B) @ x).shape == (5, 6)
