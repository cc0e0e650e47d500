"""The GEMM path of a spectral convolution agrees with its formula in any number of dimensions."""

import pytest
import torch
from laws import assert_same, relative_error

from monarch_sciml import InputError
from monarch_sciml.kernels import spectral_convolution

# grid, modes, output grid
CASES = {
    "1-D": ((13,), (5,), (13,)),
    "1-D, one mode": ((7,), (1,), (4,)),
    "2-D": ((12, 10), (4, 6), (12, 10)),
    "2-D, odd and resized": ((9, 7), (5, 4), (11, 16)),
    "2-D, one point": ((1, 6), (1, 3), (2, 5)),
    "3-D": ((6, 5, 7), (3, 4, 2), (6, 5, 7)),
    "3-D, resized": ((4, 6, 5), (3, 2, 3), (7, 3, 8)),
    "4-D, resized": ((3, 4, 5, 6), (2, 3, 2, 4), (5, 3, 4, 7)),
}


def operands(grid, modes, sizes, channels=(2, 3), batch=2, dtype=torch.float64):
    analysis = [torch.randn(2, m, n, dtype=dtype) for m, n in zip(modes, grid, strict=True)]
    synthesis = [torch.randn(2, n, m, dtype=dtype) for m, n in zip(modes, sizes, strict=True)]
    weight = torch.randn(*modes, *channels, 2, dtype=dtype)
    return torch.randn(batch, channels[0], *grid, dtype=dtype), analysis, weight, synthesis


def flat(backend, d):
    """The convolution as a function of separate tensors: x, weight, then all matrices."""

    def convolve(x, weight, *matrices):
        return spectral_convolution(x, matrices[:d], weight, matrices[d:], backend=backend)

    return convolve


@pytest.mark.parametrize("case", CASES)
def test_gemm_equals_reference_in_value_and_every_gradient(case):
    grid, modes, sizes = CASES[case]
    x, analysis, weight, synthesis = operands(grid, modes, sizes)
    d = len(grid)
    assert_same(flat("gemm", d), flat("reference", d), x, weight, *analysis, *synthesis, tol=1e-13)
    assert spectral_convolution(x, analysis, weight, synthesis).shape == (2, 3, *sizes)


def test_the_formula_in_one_dimension():
    x, (W,), w, (V,) = operands((6,), (3,), (5,))
    W, V, w = torch.complex(W[0], W[1]), torch.complex(V[0], V[1]), torch.view_as_complex(w)
    expected = torch.zeros(2, 3, 5, dtype=torch.float64)
    for b, o, i, t, k, s in torch.cartesian_prod(*map(torch.arange, (2, 3, 2, 5, 3, 6))).tolist():
        expected[b, o, t] += (V[t, k] * w[k, i, o] * W[k, s] * x[b, i, s]).real
    for backend in ("gemm", "reference"):
        y = flat(backend, 1)(x, torch.view_as_real(w), *(torch.stack((A.real, A.imag)) for A in (W, V)))
        assert relative_error(y, expected) < 1e-14


@pytest.mark.parametrize("case", ["1-D, one mode", "2-D, one point", "3-D, resized"])
def test_first_and_second_derivatives(case):
    x, analysis, weight, synthesis = operands(*CASES[case], channels=(1, 2), batch=1)
    tensors = [t.requires_grad_() for t in (x, weight, *analysis, *synthesis)]
    convolve = flat("gemm", len(analysis))
    assert torch.autograd.gradcheck(convolve, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(convolve, tensors, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_strided_operands(case):
    grid, modes, sizes = CASES[case]
    x, analysis, weight, synthesis = operands(grid, modes, sizes)
    d = len(grid)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels last
    analysis = [W.mT.contiguous().mT for W in analysis]
    synthesis = [torch.stack((V, V), dim=-1)[..., 0] for V in synthesis]
    weight = weight.transpose(-3, -2).contiguous().transpose(-3, -2)
    assert_same(flat("gemm", d), flat("reference", d), x, weight, *analysis, *synthesis, tol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_an_empty_batch_stays_empty(case):
    grid, modes, sizes = CASES[case]
    x, analysis, weight, synthesis = operands(grid, modes, sizes, batch=0)
    y = spectral_convolution(x, analysis, weight.requires_grad_(), synthesis)
    assert y.shape == (0, 3, *sizes)
    y.sum().backward()
    assert weight.grad is not None
    assert weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("dtype", "tol"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
def test_lower_precision_keeps_its_dtype(dtype, tol, backend):
    x, analysis, weight, synthesis = operands((12, 10), (4, 6), (12, 10))
    expected = spectral_convolution(x, analysis, weight, synthesis, backend="reference")
    lower = [W.to(dtype) for W in analysis], weight.to(dtype), [V.to(dtype) for V in synthesis]
    y = spectral_convolution(x.to(dtype), *lower, backend=backend)
    assert y.dtype == dtype
    assert relative_error(y.double(), expected) < tol


@pytest.mark.parametrize("case", ["1-D", "2-D", "3-D"])
def test_autocast_sets_the_dtype_of_both_passes(case):
    x, analysis, weight, synthesis = operands(*CASES[case], dtype=torch.float32)
    d = len(analysis)

    def under_autocast(*tensors):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = flat("gemm", d)(*tensors)
        assert y.dtype == torch.bfloat16
        return y

    assert_same(under_autocast, flat("reference", d), x, weight, *analysis, *synthesis, tol=3e-2)


def test_errors_name_what_was_expected():
    x, analysis, weight, synthesis = operands((6, 5), (4, 3), (6, 5))
    expected = r"x \(B, C_in, n…\), analysis \(2, m, n\).*found x .*one pair of matrices per axis"
    for bad in (
        (x[..., 0], analysis, weight, synthesis),
        (x[:, :1], analysis, weight, synthesis),
        (x, analysis[::-1], weight, synthesis),
        (x, analysis, weight.transpose(0, 1), synthesis),
        (x, analysis, weight, synthesis[:1]),
        (x, analysis, weight[..., 0], synthesis),
    ):
        with pytest.raises(InputError, match=expected):
            spectral_convolution(*bad)
    with pytest.raises(InputError, match="found 'fft'; pass one of them"):
        spectral_convolution(x, analysis, weight, synthesis, backend="fft")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("backend", ["auto", "gemm", "reference"])
def test_a_bias_of_another_length(backend):
    x, analysis, weight, synthesis = operands(*CASES["2-D"], dtype=torch.float32)
    with pytest.raises(InputError, match=r"bias \(C_out,\); found .* bias \(2,\)"):
        spectral_convolution(x, analysis, weight, synthesis, bias=torch.zeros(2), backend=backend)
