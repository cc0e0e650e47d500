"""The Triton kernels obey their formulas: on a GPU where there is one, else in Triton's interpreter."""

import math
import os

import pytest
import torch
from laws import assert_same, relative_error
from torch.nn.functional import gelu

from monarch_sciml import InputError
from monarch_sciml.kernels import reference

CUDA = torch.cuda.is_available()
if not CUDA:  # has to be said before the kernels are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton")

from monarch_sciml.kernels.triton import (  # noqa: E402
    launch,
    monarch,
    monarch_multiply,
    sense,
    sense_normal,
    spectral,
    spectral_convolution,
    spectral_kernels,
)

# batch, channels, grid, modes, output grid
CONVOLUTIONS = {
    "few": (2, (2, 3), (5, 4), (3, 2), (4, 6)),
    "square": (2, (3, 2), (12, 12), (4, 6), (12, 12)),
    "one point": (1, (1, 1), (1, 6), (1, 3), (2, 5)),
    "prime": (2, (3, 5), (17, 19), (7, 5), (13, 23)),
    "more modes than a tile": (1, (1, 2), (18, 35), (17, 33), (20, 37)),
}
# (J, S, K, I) and batch: square, rectangular, prime, single blocks, more outputs than one tile
PRODUCTS = {
    "few": ((3, 2, 4, 5), (3,)),
    "square": ((4, 4, 4, 4), (5,)),
    "rectangular": ((7, 5, 3, 11), (2, 3)),
    "prime": ((17, 13, 5, 19), (33,)),
    "one block": ((1, 6, 1, 5), ()),
    "blocks of one": ((7, 1, 5, 1), (2, 1, 4)),
    "wide": ((20, 3, 2, 40), (3,)),
    "two launches": ((3, 67, 4, 5), (3,)),
    "two launches in the adjoint": ((3, 2, 2, 70), (19,)),
}
# batch, coils, rows, columns
IMAGES = {"few": (2, 2, 3, 5), "prime": (2, 3, 17, 19), "wide": (1, 2, 3, 37), "tall": (1, 2, 70, 5)}


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu) if CUDA else "cpu"])
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan(monkeypatch):
    """A result that a kernel does not write, or reads before it is written, shows."""
    monkeypatch.setattr(launch, "empty", lambda like, *shape: like.new_full(shape, math.nan))


@pytest.fixture(params=["own tiles", "forced tiles"])
def tiles(request, monkeypatch):
    """The tiles chosen by shape, and ones that make tiny shapes need several planes and several tiles."""
    if request.param == "forced tiles":
        planes = {"P": 4, "M1": 16, "M2": 16, "BH": 16, "BW": 16, "num_warps": 4}
        monkeypatch.setattr(spectral_kernels, "analysis_tiles", lambda *shape: planes)
        monkeypatch.setattr(spectral_kernels, "synthesis_tiles", lambda *shape: planes)
        product = {"BB": 16, "BS": 4, "BJ": 16, "BI": 16}
        monkeypatch.setattr(monarch, "tiles", lambda *shape: product)
        monkeypatch.setattr(sense, "tiles", lambda *shape: {"BH": 16, "BN": 16, "BK": 16, "num_warps": 4})


def in_nan(t):
    """The same numbers inside a larger tensor of NaN: strided, and no neighbour may be read."""
    frame = torch.full([n + 2 for n in t.shape], math.nan, dtype=t.dtype, device=t.device)
    inside = frame[(slice(1, -1),) * t.ndim]
    inside.copy_(t)
    return inside


def convolution(case, device, dtype=torch.float32):
    """x, bias, skip, weight, then all matrices, scaled so that the GELU is neither linear nor off."""
    B, (C_in, C_out), grid, modes, sizes = CONVOLUTIONS[case]
    analysis = [torch.randn(2, m, n) / n**0.5 for m, n in zip(modes, grid, strict=True)]
    synthesis = [torch.randn(2, n, m) / (2 * m) ** 0.5 for m, n in zip(modes, sizes, strict=True)]
    weight = torch.randn(*modes, C_in, C_out, 2) / (2 * C_in) ** 0.5
    fields = torch.randn(B, C_in, *grid), torch.randn(C_out), torch.randn(B, C_out, *sizes)
    return [t.to(device, dtype) for t in (*fields, weight, *analysis, *synthesis)]


def fast(x, bias, skip, weight, A1, A2, V1, V2):
    return spectral_convolution(x, (A1, A2), weight, (V1, V2), bias=bias, skip=skip, gelu=True)


def plain(x, bias, skip, weight, A1, A2, V1, V2):
    return gelu(reference.spectral_convolution(x, (A1, A2), weight, (V1, V2)) + bias[:, None, None] + skip)


def linear(x, weight, A1, A2, V1, V2):
    return spectral_convolution(x, (A1, A2), weight, (V1, V2))


def linear_plain(x, weight, A1, A2, V1, V2):
    return reference.spectral_convolution(x, (A1, A2), weight, (V1, V2))


def linear_operands(*how):
    x, _, _, *factors = convolution(*how)
    return [x, *factors]


def product(case, device, dtype=torch.float32):
    (J, S, K, I), batch = PRODUCTS[case]
    shapes = (*batch, K * I), (J, S, K), (K, J, I)
    return [torch.randn(shape).to(device, dtype) for shape in shapes]


def image(case, device):
    B, C, H, W = IMAGES[case]
    shapes = (B, H, W), (B, C, H, W), (W, W)  # the law holds for any matrix, Hermitian or not
    return [torch.randn(shape, dtype=torch.complex64, device=device) for shape in shapes]


def normal(x, maps, gram):
    return (maps.conj() * ((maps * x[:, None]) @ gram.mT)).sum(1)


FUNCTIONS = {
    "convolution": (fast, plain, convolution),
    "linear convolution": (linear, linear_plain, linear_operands),
    "product": (monarch_multiply, reference.monarch_multiply, product),
    "normal": (sense_normal, normal, image),
}
CASES = [("convolution", c) for c in CONVOLUTIONS]
CASES += [("product", c) for c in PRODUCTS] + [("normal", c) for c in IMAGES]
EACH = [("convolution", "few"), ("linear convolution", "few"), ("product", "few"), ("normal", "few")]


def exactly(f, *inputs):
    """A formula in double precision."""
    return f(*(t.to(torch.promote_types(t.dtype, torch.float64)) for t in inputs))


@pytest.mark.parametrize(("name", "case"), CASES)
def test_values_and_every_gradient(name, case, device, tiles):
    kernel, formula, operands = FUNCTIONS[name]
    assert_same(kernel, lambda *t: exactly(formula, *t), *operands(case, device), tol=2e-6)


@pytest.mark.parametrize(("name", "case"), EACH)
def test_nothing_outside_a_strided_operand_is_read(name, case, device, tiles):
    kernel, _, operands = FUNCTIONS[name]
    dense = operands(case, device)
    framed = [in_nan(t).requires_grad_() for t in dense]
    dense = [t.requires_grad_() for t in dense]
    outputs = [kernel(*framed), kernel(*dense)]
    upstream = torch.randn_like(outputs[1])
    found = torch.autograd.grad(outputs[0], framed, in_nan(upstream))
    expected = torch.autograd.grad(outputs[1], dense, upstream)
    for f, e in zip((outputs[0], *found), (outputs[1], *expected), strict=True):
        assert relative_error(f, e) < 1e-6


@pytest.mark.parametrize("with_gelu", [False, True])
@pytest.mark.parametrize("with_skip", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_any_part_of_the_epilogue(with_bias, with_skip, with_gelu, device):
    x, bias, skip, *factors = convolution("few", device)
    parts = [bias] * with_bias + [skip] * with_skip

    def kernel(x, weight, A1, A2, V1, V2, *parts):
        keywords = {"bias": parts[0] if with_bias else None, "skip": parts[-1] if with_skip else None}
        return spectral_convolution(x, (A1, A2), weight, (V1, V2), **keywords, gelu=with_gelu)

    def formula(x, weight, A1, A2, V1, V2, *parts):
        y = reference.spectral_convolution(x, (A1, A2), weight, (V1, V2))
        for part in parts:
            y = y + part.reshape(-1, *part.shape[1:] or (1, 1))
        return gelu(y) if with_gelu else y

    assert_same(kernel, lambda *t: exactly(formula, *t), x, *factors, *parts, tol=2e-6)


@pytest.mark.parametrize(("name", "case"), EACH)
def test_each_operand_may_be_the_only_one_with_a_gradient(name, case, device):
    kernel, _, operands = FUNCTIONS[name]
    tensors = operands(case, device)
    everything = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(kernel(*everything).abs().square().sum(), everything)
    for wanted, e in enumerate(expected):
        one = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        (found,) = torch.autograd.grad(kernel(*one).abs().square().sum(), one[wanted])
        assert relative_error(found, e) < 1e-6


@pytest.mark.parametrize(("name", "case"), EACH[1:])
def test_second_derivatives(name, case, device):
    kernel, formula, operands = FUNCTIONS[name]
    tensors = operands(case, device)
    directions = [torch.randn_like(t) for t in tensors]

    def curvature(f):
        """The gradient of the first derivative along some directions, for a fixed upstream gradient."""

        def derivative(*t):
            first = torch.autograd.grad(f(*t).abs().square().sum(), t, create_graph=True)
            return sum((g * d.conj()).real.sum() for g, d in zip(first, directions, strict=True)).reshape(1)

        return derivative

    exact = curvature(lambda *t: exactly(formula, *t))
    assert_same(curvature(kernel), exact, *tensors, tol=1e-5)


LOW = [(torch.float16, 4e-3), pytest.param(torch.bfloat16, 3e-2, marks=pytest.mark.gpu)]


@pytest.mark.parametrize(("dtype", "tol"), LOW)
@pytest.mark.parametrize(("name", "case"), EACH[:3])
def test_lower_precision_keeps_its_dtype(name, case, dtype, tol, device):
    if dtype == torch.bfloat16 and not CUDA:
        pytest.skip("the interpreter refuses it")
    kernel, formula, operands = FUNCTIONS[name]
    lower = operands(case, device, dtype)
    assert kernel(*lower).dtype == dtype
    assert_same(kernel, lambda *t: exactly(formula, *t).to(dtype), *lower, tol=tol)


@pytest.mark.parametrize(("precision", "tol"), [("ieee", 1e-6), ("tf32x3", 2e-6), ("tf32", 3e-3)])
def test_precision_bounds_the_error(precision, tol, device):
    x, weight, A1, A2, V1, V2 = linear_operands("more modes than a tile", device)
    y = spectral_convolution(x, (A1, A2), weight, (V1, V2), precision=precision)
    assert relative_error(y, exactly(linear_plain, x, weight, A1, A2, V1, V2)) < tol
    operands = product("prime", device)
    y = monarch_multiply(*operands, precision=precision)
    assert relative_error(y, exactly(reference.monarch_multiply, *operands)) < tol
    operands = image("wide", device)
    assert relative_error(sense_normal(*operands, precision=precision), exactly(normal, *operands)) < tol


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_empty_batch_stays_empty(name, device):
    kernel, _, operands = FUNCTIONS[name]
    x, *rest = operands(dict(EACH)[name], device)
    per_slice = {"convolution": [1], "normal": [0]}.get(name, [])  # skip and maps have a batch as well
    rest = [t[:0] if i in per_slice else t for i, t in enumerate(rest)]
    y = kernel(x[:0].requires_grad_(), *(t.requires_grad_() for t in rest))
    assert y.numel() == 0
    gradients = torch.autograd.grad(y.abs().sum(), rest)
    assert all(g.count_nonzero() == 0 for g in gradients)


# each operator, the shapes of its tensors, its settings
CALLS = {
    "analysis": (spectral._analysis, [(2, 3, 5, 4), (2, 3, 5), (2, 2, 4)], (True, False, "ieee")),
    "synthesis": (
        spectral._synthesis,
        [(3, 2, 2, 2, 4, 2), (2, 5, 3), (2, 6, 2), (4,), (2, 4, 5, 6)],
        (False, True, "ieee"),
    ),
    "gelu": (
        spectral._gelu_gradient,
        [(2, 4, 5, 6), (3, 2, 2, 2, 4, 2), (2, 5, 3), (2, 6, 2), (4,), (2, 4, 5, 6)],
        (False, "ieee"),
    ),
    "product": (monarch._multiply, [(4, 6), (5, 4, 3), (3, 5, 2)], (False, "ieee")),
    "adjoint product": (monarch._multiply, [(4, 6), (5, 4, 3), (3, 5, 2)], (True, "ieee")),
    "normal": (sense._apply, [(2, 3, 5, 2), (2, 4, 3, 5, 2), (5, 5, 2)], (False, "ieee")),
}


@pytest.mark.parametrize("name", CALLS)
def test_operators_are_registered_as_torch_asks(name, device):
    operator, shapes, settings = CALLS[name]
    differentiable = name != "gelu"
    tensors = [torch.randn(shape, device=device, requires_grad=differentiable) for shape in shapes]
    torch.library.opcheck(operator, (*tensors, *settings))


@pytest.mark.parametrize(("name", "case"), EACH)
def test_compiles_as_one_graph(name, case, device):
    kernel, _, operands = FUNCTIONS[name]
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    assert_same(compiled, kernel, *operands(case, device), tol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "case"), EACH)
def test_a_cuda_graph_replays_forward_and_backward(name, case):
    kernel, _, operands = FUNCTIONS[name]
    tensors = [t.requires_grad_() for t in operands(case, "cuda")]

    def step():
        y = kernel(*tensors)
        return y, *torch.autograd.grad(y, tensors, torch.ones_like(y))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors[0].mul_(2)
    graph.replay()
    for found, expected in zip(captured, step(), strict=True):
        assert relative_error(found.detach(), expected.detach()) < 1e-6


def test_errors_name_the_remedy(device):
    x, bias, skip, weight, A1, A2, V1, V2 = convolution("prime", device)
    with pytest.raises(InputError, match=r"a 2-D grid; found x \(2, 3, 17, 19\); use backend 'gemm'"):
        spectral_convolution(x, (A1,), weight, (V1,))
    with pytest.raises(InputError, match=r"analysis\[0\] \(2, 7, 17\); found \(2, 5, 19\)"):
        spectral_convolution(x, (A2, A1), weight, (V1, V2))
    with pytest.raises(InputError, match=r"x \(2, 3, 17, 19\); found \(2, 1, 17, 19\)"):
        spectral_convolution(x[:, :1], (A1, A2), weight, (V1, V2))
    with pytest.raises(InputError, match=r"skip \(2, 5, 13, 23\); found \(1, 5, 13, 23\)"):
        spectral_convolution(x, (A1, A2), weight, (V1, V2), skip=skip[:1])
    with pytest.raises(InputError, match=r"bias \(5,\); found \(4,\)"):
        spectral_convolution(x, (A1, A2), weight, (V1, V2), bias=bias[1:])
    with pytest.raises(InputError, match=r"'tf32x3'.*found 'high'; pass one of them"):
        spectral_convolution(x, (A1, A2), weight, (V1, V2), precision="high")
    with pytest.raises(InputError, match=r"float16 or bfloat16; found torch.float32, torch.float64"):
        spectral_convolution(x, (A1, A2), weight.double(), (V1, V2))
    y, L, R = product("rectangular", device)
    with pytest.raises(InputError, match=r"factors L \(J, S, K\) and R \(K, J, I\); found L \(7, 5, 3\)"):
        monarch_multiply(y, L, R[:2])
    with pytest.raises(
        InputError, match=r"rank 1 for backend 'triton', .* L \(7, 5, 6\) .*rank use backend 'auto'"
    ):
        monarch_multiply(y, torch.cat((L, L), 2), torch.cat((R, R), 1))
    with pytest.raises(InputError, match=r"last dimension of 33; found x .*32.*; move that axis"):
        monarch_multiply(y[..., 1:], L, R)
    with pytest.raises(InputError, match=r"found torch.complex64; convert them, or use backend 'gemm'"):
        monarch_multiply(*(t.to(torch.complex64) for t in (y, L, R)))
    z, maps, gram = image("prime", device)
    with pytest.raises(InputError, match=r"x \(B, H, W\), maps .*gram \(19, 18\); fold every slice into B"):
        sense_normal(z, maps, gram[:, 1:])
    with pytest.raises(InputError, match=r"complex64 operands; found torch.complex128, torch.complex64"):
        sense_normal(z, maps, gram.to(torch.complex128))


@pytest.mark.skipif(CUDA, reason="of the interpreter")
def test_the_interpreter_refuses_what_it_multiplies_wrongly():
    with pytest.raises(InputError, match=r"another dtype.*found torch.bfloat16, .* wrongly; use float16"):
        monarch_multiply(*(t.bfloat16() for t in product("square", "cpu")))


def test_kernels_stay_off_a_device_without_triton(monkeypatch):
    monkeypatch.setattr(launch, "_INTERPRETED", False)
    with pytest.raises(InputError, match="tensors on one CUDA device; found cpu; move them there"):
        monarch_multiply(*product("square", "cpu"))
