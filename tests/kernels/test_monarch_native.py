"""The C++ path of a Monarch product agrees with its formula, and torch knows it as an operator."""

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError
from monarch_sciml.kernels import dispatch, monarch_multiply, native

needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler with OpenMP")
# rows, J, S, K, I, T; a vector has 4 to 16 rows, a group at most 64
CASES = {
    "whole vectors": (64, 16, 16, 16, 16, 1),
    "ragged everywhere": (70, 3, 7, 5, 11, 1),
    "one row": (1, 5, 3, 4, 6, 1),
    "one of each": (3, 1, 1, 1, 1, 1),
    "a block of L, of R": (33, 1, 13, 13, 1, 1),
    "many small blocks": (40, 17, 2, 23, 3, 1),
    "wide blocks": (35, 2, 37, 3, 41, 1),
    "many groups": (333, 4, 5, 3, 7, 1),
    "rank two": (70, 3, 7, 5, 11, 2),
    "rank, ragged": (37, 2, 5, 3, 19, 9),
    "rank, whole": (64, 4, 32, 4, 16, 4),
    "no row": (0, 3, 2, 4, 5, 3),
}


def operands(case, dtype=torch.float32):
    N, J, S, K, I, T = CASES[case]
    shapes = (N, K * I), (J, S, K * T), (K, J * T, I)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def gradients(backend, tensors, blocks, seed):
    y = monarch_multiply(*tensors, blocks=blocks, backend=backend)
    return [y, *torch.autograd.grad(y, tensors, seed.to(y.dtype))]


@needs_compiler
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_native_equals_reference_in_value_and_every_gradient(case, blocks, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tensors = operands(case)
    seed = torch.randn(monarch_multiply(*tensors, backend="native").shape)
    truth = gradients("reference", [t.detach().double().requires_grad_() for t in tensors], blocks, seed)
    found = gradients("native", tensors, blocks, seed)
    for name, f, expected in zip(("y", "x", "L", "R"), found, truth, strict=True):
        assert relative_error(f.double(), expected) < 1e-6, name


@needs_compiler
def test_sums_over_threads_come_out_the_same_every_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    tensors, seed = operands("many groups"), torch.randn(333, 20)
    first = gradients("native", tensors, False, seed)
    for _ in range(100):
        again = gradients("native", tensors, False, seed)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@needs_compiler
@pytest.mark.parametrize("wanted", range(3))
def test_each_operand_may_be_the_only_one_with_a_gradient(wanted):
    tensors = [t.detach() for t in operands("rank, ragged")]
    tensors[wanted].requires_grad_()
    found, expected = (
        torch.autograd.grad(monarch_multiply(*tensors, backend=b).square().sum(), tensors[wanted])[0]
        for b in ("native", "gemm")
    )
    assert relative_error(found, expected) < 1e-6


@needs_compiler
def test_uninitialised_memory_never_shows(monkeypatch):
    def dirty(make):
        return lambda *args, **kwargs: make(*args, **kwargs).fill_(torch.nan)

    monkeypatch.setattr(torch, "empty_like", dirty(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", dirty(torch.Tensor.new_empty))
    for found in gradients("native", operands("rank, ragged"), False, torch.ones(37, 10)):
        assert torch.isfinite(found).all()


@needs_compiler
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("case", ["ragged everywhere", "rank two"])
def test_second_derivatives(case, blocks):
    def second(backend, tensors):
        y = monarch_multiply(*tensors, blocks=blocks, backend=backend)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    tensors = operands(case)
    for found, expected in zip(second("native", tensors), second("gemm", tensors), strict=True):
        assert relative_error(found, expected) < 5e-6


@needs_compiler
def test_batches_and_strides():
    x, L, R = (t.detach() for t in operands("ragged everywhere"))
    y = monarch_multiply(x, L, R, backend="native")
    turned = x.T.contiguous().T, L.mT.contiguous().mT, R.transpose(0, 1).contiguous().transpose(0, 1)
    assert not any(t.is_contiguous() for t in turned)
    assert torch.equal(monarch_multiply(*turned, backend="native"), y)
    assert torch.equal(monarch_multiply(x.view(2, 5, 7, 55), L, R, backend="native"), y.view(2, 5, 7, 21))
    assert relative_error(monarch_multiply(x[0], L, R, backend="native"), y[0]) < 1e-6


@needs_compiler
@pytest.mark.parametrize("blocks", [False, True])
def test_torch_knows_the_operator(blocks):
    torch.library.opcheck(torch.ops.monarch_sciml.monarch.default, (*operands("rank two"), blocks))


@needs_compiler
def test_compiles_without_graph_breaks():
    tensors = operands("rank two")
    compiled = torch.compile(lambda *t: monarch_multiply(*t), fullgraph=True, backend="aot_eager")
    seed = torch.randn(70, 21)
    y = compiled(*tensors)
    found = [y, *torch.autograd.grad(y, tensors, seed)]
    for a, b in zip(found, gradients("native", tensors, False, seed), strict=True):
        assert torch.equal(a, b)


@needs_compiler
def test_it_runs_where_it_can_and_leaves_the_rest_to_the_others():
    x, L, R = operands("ragged everywhere")
    assert torch.equal(monarch_multiply(x, L, R), monarch_multiply(x, L, R, backend="native"))
    doubles = x.double(), L, R
    assert torch.equal(monarch_multiply(*doubles), monarch_multiply(*doubles, backend="gemm"))
    several = x, L[None], R[None]
    assert torch.equal(monarch_multiply(*several), monarch_multiply(*several, backend="reference"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert monarch_multiply(x, L, R).dtype == torch.bfloat16
        with pytest.raises(InputError, match=r"float32 on a CPU, one matrix.*found torch.bfloat16 on cpu"):
            monarch_multiply(x, L, R, backend="native")
    for unfit in (doubles, several):
        with pytest.raises(
            InputError, match=r"float32 on a CPU, one matrix and a C.. compiler.*use backend 'auto'"
        ):
            monarch_multiply(*unfit, backend="native")


def test_without_a_compiler_the_gemm_path_runs(monkeypatch):
    tensors = operands("ragged everywhere")
    expected = monarch_multiply(*tensors, backend="gemm")
    monkeypatch.setattr(dispatch.native, "available", lambda: False)
    assert torch.equal(monarch_multiply(*tensors), expected)
    with pytest.raises(InputError, match=r"a C\+\+ compiler for backend 'native'"):
        monarch_multiply(*tensors, backend="native")
