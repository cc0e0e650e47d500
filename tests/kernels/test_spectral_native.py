"""The C++ path of a spectral convolution agrees with its formula, and torch knows it as an operator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from laws import relative_error

from monarch_sciml import InputError
from monarch_sciml.kernels import dispatch, native, spectral_convolution
from monarch_sciml.kernels.native import build

needs_compiler = pytest.mark.skipif(not native.available(), reason="needs a C++ compiler with OpenMP")
# batch, C_in, C_out, grid, modes, output grid
CASES = {
    "whole vectors": (2, 16, 32, (16, 32), (6, 4), (16, 32)),
    "ragged everywhere": (3, 5, 7, (11, 13), (4, 3), (9, 17)),
    "more than a vector": (1, 33, 20, (37, 18), (7, 5), (20, 40)),
    "one of each": (2, 1, 1, (3, 2), (2, 1), (3, 3)),
    "full spectrum": (1, 4, 3, (7, 9), (7, 5), (7, 9)),
    "rows of two tiles": (2, 3, 17, (6, 83), (3, 9), (5, 70)),
    "a column": (2, 3, 18, (1, 19), (1, 6), (5, 1)),
    "no sample": (0, 3, 4, (6, 6), (3, 2), (6, 6)),
}
NAMES = ("x", "weight", "bias", "analysis H", "analysis W", "synthesis H", "synthesis W")


def operands(case, dtype=torch.float32):
    B, Ci, Co, (H, W), (mh, mw), (oH, oW) = CASES[case]
    shapes = (B, Ci, H, W), (mh, mw, Ci, Co, 2), (Co,), (2, mh, H), (2, mw, W), (2, oH, mh), (2, oW, mw)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def convolve(backend, x, weight, bias, *matrices):
    return spectral_convolution(x, matrices[:2], weight, matrices[2:], bias=bias, backend=backend)


def gradients(backend, tensors, seed):
    y = convolve(backend, *tensors)
    return [y, *torch.autograd.grad(y, tensors, seed.to(y.dtype))]


@needs_compiler
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_native_equals_reference_in_value_and_every_gradient(case, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tensors = operands(case)
    seed = torch.randn(convolve("native", *tensors).shape)
    truth = gradients("reference", [t.detach().double().requires_grad_() for t in tensors], seed)
    for name, found, expected in zip(("y", *NAMES), gradients("native", tensors, seed), truth, strict=True):
        assert relative_error(found.double(), expected) < 2e-6, name
        assert torch.isfinite(found).all()


@needs_compiler
def test_uninitialised_memory_never_shows(monkeypatch):
    def dirty(make):
        def allocate(*args, **kwargs):
            return make(*args, **kwargs).fill_(torch.nan)

        return allocate

    monkeypatch.setattr(torch, "empty_like", dirty(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", dirty(torch.Tensor.new_empty))
    tensors = operands("ragged everywhere")
    for found in gradients("native", tensors, torch.ones(3, 7, 9, 17)):
        assert torch.isfinite(found).all()


@needs_compiler
@pytest.mark.parametrize("wanted", range(len(NAMES)), ids=NAMES)
def test_each_operand_may_be_the_only_one_with_a_gradient(wanted):
    tensors = [t.detach() for t in operands("ragged everywhere")]
    tensors[wanted].requires_grad_()
    (found,) = torch.autograd.grad(convolve("native", *tensors).square().sum(), tensors[wanted])
    (expected,) = torch.autograd.grad(convolve("gemm", *tensors).square().sum(), tensors[wanted])
    assert relative_error(found, expected) < 2e-6


@needs_compiler
def test_second_derivatives():
    def second(backend, tensors):
        y = convolve(backend, *tensors)
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    tensors = operands("ragged everywhere")
    for found, expected in zip(second("native", tensors), second("gemm", tensors), strict=True):
        assert relative_error(found, expected) < 5e-6


@needs_compiler
def test_a_gradient_larger_than_the_cache():
    shapes = (2, 64, 9, 8), (8, 5, 64, 832, 2), (832,), (2, 8, 9), (2, 5, 8), (2, 3, 8), (2, 3, 5)
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    assert tensors[1].numel() * 4 >= 1 << 24
    seed = torch.randn(2, 832, 3, 3)
    for found, expected in zip(
        gradients("native", tensors, seed), gradients("gemm", tensors, seed), strict=True
    ):
        assert relative_error(found, expected) < 3e-6


@needs_compiler
def test_strided_operands_and_no_bias():
    x, weight, _, *matrices = (t.detach() for t in operands("whole vectors"))
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    wide = weight.repeat(1, 1, 1, 2, 1)[..., :32, :]
    assert not turned.is_contiguous()
    assert not wide.is_contiguous()
    assert torch.equal(
        convolve("native", turned, wide, None, *matrices), convolve("native", x, weight, None, *matrices)
    )


@needs_compiler
def test_torch_knows_the_operator():
    x, weight, bias, Ea, Wa, Es, V = operands("ragged everywhere")
    arguments = (x, Wa, Ea, weight, Es, V, bias, True)
    torch.library.opcheck(torch.ops.monarch_sciml.spectral.default, arguments)


@needs_compiler
def test_compiles_without_graph_breaks():
    tensors = operands("whole vectors")
    compiled = torch.compile(lambda *t: convolve("native", *t), fullgraph=True, backend="aot_eager")
    seed = torch.randn(2, 32, 16, 32)
    y = compiled(*tensors)
    found = [y, *torch.autograd.grad(y, tensors, seed)]
    for a, b in zip(found, gradients("native", tensors, seed), strict=True):
        assert relative_error(a, b) < 1e-6


@needs_compiler
def test_what_it_cannot_do_is_left_to_the_others():
    doubles = operands("ragged everywhere", torch.float64)
    assert relative_error(convolve("auto", *doubles), convolve("gemm", *doubles)) == 0
    with pytest.raises(InputError, match="float32 on a CPU, two axes and a C"):
        convolve("native", *doubles)


def test_without_a_compiler_the_gemm_path_runs(monkeypatch):
    tensors = operands("ragged everywhere")
    expected = convolve("gemm", *tensors)
    monkeypatch.setattr(dispatch.native, "available", lambda: False)
    assert torch.equal(convolve("auto", *tensors), expected)
    with pytest.raises(InputError, match=r"a C\+\+ compiler for backend 'native'"):
        convolve("native", *tensors)


@pytest.mark.parametrize(
    "setting", [("MONARCH_SCIML_NATIVE", "0"), ("CXX", "false"), ("CXX", "no-such-compiler")]
)
def test_no_library_where_it_is_switched_off_or_cannot_be_built(setting, monkeypatch, tmp_path):
    monkeypatch.setenv("MONARCH_SCIML_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin" if setting[1] == "false" else str(tmp_path))
    monkeypatch.setenv(*setting)
    assert build.library.__wrapped__() is None
    assert os.listdir(tmp_path) == []


@needs_compiler
def test_built_once_whole_and_kept(monkeypatch, tmp_path):
    whole = Path(build.library()._name)
    monkeypatch.setenv("MONARCH_SCIML_CACHE", str(tmp_path))
    damaged = tmp_path / whole.name
    damaged.write_bytes(whole.read_bytes()[:1000])
    loaded = build.library.__wrapped__()
    assert loaded is not None
    assert build._is_whole(Path(loaded._name))
    before = [path.stat().st_mtime_ns for path in tmp_path.iterdir()]
    assert build.library.__wrapped__() is not None
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == before


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "home/.cache/monarch_sciml"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/monarch_sciml"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/monarch_sciml"),
        ({"XDG_CACHE_HOME": "xdg", "MONARCH_SCIML_CACHE": "own"}, "own"),
        ({"MONARCH_SCIML_CACHE": "~/own"}, "home/own"),  # as a container's settings leave it
    ],
)
def test_the_cache_is_where_caches_are(settings, expected, monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "MONARCH_SCIML_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in settings.items():
        monkeypatch.setenv(name, value if value[:1] in ("", "~") else str(tmp_path / value))
    assert build._folder() == tmp_path / expected


@needs_compiler
def test_the_compiler_may_have_arguments(monkeypatch):
    monkeypatch.setenv("CXX", "c++ -O1")
    assert build._compiler() == ["c++", "-O1"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build._compiler() == ["c++"]


@needs_compiler
def test_several_threads_sum_in_the_same_order_every_time(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    tensors = operands("more than a vector")
    seed = torch.randn(1, 20, 20, 40)
    first = gradients("native", tensors, seed)
    for _ in range(20):
        assert all(map(torch.equal, gradients("native", tensors, seed), first))


@needs_compiler
def test_torchs_default_dtype_at_the_import_does_not_matter():
    """Whoever works in float64 sets it first; the kernel takes every number for a float32."""
    code = """
import torch
torch.set_default_dtype(torch.float64)
from monarch_sciml.kernels import spectral_convolution
x, W, w = torch.randn(2, 3, 6, 8), (torch.randn(2, 4, 6), torch.randn(2, 3, 8)), torch.randn(4, 3, 3, 5, 2)
V = [M.mT for M in W]
y = spectral_convolution(x, W, w, V)
single = spectral_convolution(x.float(), [M.float() for M in W], w.float(), [M.float() for M in V])
assert (single - y).norm() < 1e-5 * y.norm(), (single, y)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
