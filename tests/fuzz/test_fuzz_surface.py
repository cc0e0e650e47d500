"""The Python surface with wild shapes, types and numbers: a right result, or a refusal."""

import math
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from wild import answer, fuzz

from monarch_sciml import InputError, MonarchLinear, MonarchMatrix, MonarchSpectralConv, dft, project
from monarch_sciml.mri.masks import MaskConfig, apply_mask, draw_mask, find_acs, mask_from_kspace
from monarch_sciml.mri.metrics import center_crop, nmse, psnr, ssim
from monarch_sciml.mri.sensitivity import estimate_maps

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float16, torch.bfloat16]
DTYPES += [torch.int64, torch.uint8, torch.bool]
# what torch itself refuses: a type that it cannot factorise, an axis that is not there
LOUD = (RuntimeError, IndexError, TypeError, ZeroDivisionError)  # NotImplementedError is a RuntimeError
SMALL = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 8]), max_size=4).map(tuple)
NUMBERS = st.sampled_from([0.0, 1.0, 1e-45, 1e38, 1e300, math.nan, math.inf])
MEASURES = [math.nan, math.inf, -math.inf, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 7.0, 1e300]


def tensor(shape: tuple[int, ...], dtype: torch.dtype, value: float | None = None) -> Tensor:
    """Random numbers, the last one replaced."""
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    if value is not None and x.numel():
        x.view(-1)[-1] = value
    return (
        x.to(dtype)
        if dtype.is_floating_point or dtype.is_complex
        else x.nan_to_num(0, 1, -1).clamp(0, 9).to(dtype)
    )


def refusal(call: Any, *arguments: Any, **options: Any) -> Any:
    """``answer``, or what torch says of it: for the algebra and the layers, which leave types to torch."""
    try:
        return answer(call, *arguments, **options)
    except LOUD as error:
        return InputError("what torch can do", f"{error} ", "-")


def close(found: Tensor, wanted: Tensor) -> bool:
    """Equal to rounding, of the coarser type."""
    scale = max(float(wanted.abs().max()), 1e-30) if wanted.numel() else 1.0
    rounding = max(1e-4, 8 * torch.finfo(found.dtype).eps)
    return found.shape == wanted.shape and bool((found - wanted).abs().le(rounding * scale).all())


@fuzz(60, n=st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 12, 13, 64, 97]), dtype=st.sampled_from(DTYPES))
def test_dft(n: int, dtype: torch.dtype) -> None:
    F = refusal(dft, n)
    if isinstance(F, InputError):
        assert n < 1
        return
    x = tensor((n,), dtype)
    y = refusal(lambda: F @ x)
    if not isinstance(y, InputError):
        wanted = torch.fft.fft(x.to(torch.complex128), norm="ortho")
        assert close(y.to(torch.complex128), wanted) or dtype in (torch.float16, torch.bfloat16)


COUNTS = st.none() | st.tuples(st.integers(-1, 9), st.integers(-1, 9))


@fuzz(150, shape=SMALL, dtype=st.sampled_from(DTYPES), value=NUMBERS, nblocks=COUNTS, rank=st.integers(-1, 4))
def test_project(shape: tuple[int, ...], dtype: torch.dtype, value: float, nblocks: Any, rank: int) -> None:
    A = tensor(shape, dtype, value)
    M = refusal(project, A, nblocks, rank=rank)
    if isinstance(M, InputError):
        return
    dense = M.to_dense()
    assert dense.shape == A.shape
    if value <= 1:
        assert dense.isfinite().all()
        # a projection: nearer than zero
        assert float((A - dense).abs().double().norm()) <= float(A.abs().double().norm()) * (1 + 1e-3)
        again = project(dense, M.nblocks, rank=rank).to_dense()
        assert close(again, dense)


@fuzz(150, left=SMALL, right=SMALL, x=SMALL, dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 3))
def test_monarch_matrix(left: tuple, right: tuple, x: tuple, dtypes: tuple) -> None:
    M = refusal(MonarchMatrix, tensor(left, dtypes[0]), tensor(right, dtypes[1]))
    if isinstance(M, InputError):
        return
    assert M.to_dense().shape[-2:] == M.shape
    for v in (tensor(x, dtypes[2]), tensor((2, M.shape[1]), dtypes[0])):
        y = refusal(lambda v=v: M @ v)
        if not isinstance(y, InputError) and v.ndim == 1:
            assert y.shape[-1] == M.shape[0]


@fuzz(
    60,
    sizes=st.lists(st.sampled_from([0, 1, 2, 3, 4]), min_size=5, max_size=5),
    dtype=st.sampled_from(DTYPES[:4]),
)
def test_fitting_factors(sizes: list[int], dtype: torch.dtype) -> None:
    J, S, K, T, I = sizes
    M = refusal(MonarchMatrix, tensor((J, S, K * T), dtype), tensor((K, J * T, I), dtype))
    if not isinstance(M, InputError):
        v = tensor((M.shape[1],), dtype)
        y = refusal(lambda: M @ v)
        assert isinstance(y, InputError) or close(y, M.to_dense() @ v)
        assert min(sizes) == 0 or not isinstance(y, InputError)


@fuzz(
    100,
    sizes=st.tuples(*[st.sampled_from([-1, 0, 1, 2, 5, 6, 8])] * 2),
    blocks=st.sampled_from([None, -1, 0, 1, 2, 3, 9]),
    shape=SMALL,
    dtype=st.sampled_from(DTYPES),
)
def test_monarch_linear(
    sizes: tuple[int, int], blocks: int | None, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer = refusal(MonarchLinear, *sizes, **({} if blocks is None else {"nblocks": blocks}))
    if isinstance(layer, InputError):
        return
    assert min(sizes) >= 1
    x = torch.randn(3, sizes[0])
    y = layer(x)
    assert y.shape == (3, sizes[1])
    assert y.isfinite().all()
    other = refusal(layer, tensor(shape, dtype))
    assert isinstance(other, InputError) or other.shape == (*shape[:-1], sizes[1])


GRIDS = st.sampled_from([-1, 0, 1, 6, (6,), (6, 5), (0, 6), (6, -5), (), (4, 4, 4)])
MODES = st.sampled_from([-1, 0, 1, 4, 10**9, (4,), (4, 4), (4, 0), (), (2, 2, 2)])


@fuzz(
    100,
    channels=st.tuples(*[st.sampled_from([-1, 0, 1, 2])] * 2),
    modes=MODES,
    grid=GRIDS,
    shape=SMALL,
    dtype=st.sampled_from(DTYPES),
)
def test_spectral_convolution(
    channels: tuple[int, int], modes: Any, grid: Any, shape: tuple, dtype: torch.dtype
) -> None:
    layer = refusal(MonarchSpectralConv, *channels, modes, grid=grid)
    if isinstance(layer, InputError):
        return
    x = torch.randn(2, channels[0], *layer.grid)
    y = layer(x)
    assert y.shape == (2, channels[1], *layer.grid)
    assert y.isfinite().all()
    other = refusal(layer, tensor(shape, dtype))
    assert isinstance(other, InputError) or other.shape == (shape[0], channels[1], *shape[2:])


KINDS = ["random", "equispaced", "equispaced-fraction", "magic", "magic-fraction", "spiral", ""]
SEEDS = [None, -1, 0, 2**32, 2**64, (), (1, 2), (-1,), 1.5, "a"]


@fuzz(
    300,
    kind=st.sampled_from(KINDS),
    pairs=st.lists(st.tuples(st.sampled_from(MEASURES), st.sampled_from(MEASURES)), max_size=2),
    shape=st.tuples(*[st.sampled_from([-1, 0, 1, 2, 7, 32])] * 2),
    seed=st.sampled_from(SEEDS),
)
def test_masks(kind: Any, pairs: list[tuple[float, float]], shape: tuple[int, int], seed: Any) -> None:
    config = answer(MaskConfig, kind, tuple(r for r, _ in pairs), tuple(f for _, f in pairs))
    mask = config if isinstance(config, InputError) else answer(draw_mask, config, shape, seed)
    if isinstance(mask, InputError):
        return
    assert mask.pattern.shape == (1, shape[1])
    assert mask.pattern.any()
    assert 1 <= mask.acceleration <= shape[1]
    assert find_acs(mask.pattern)[1] >= mask.center_lines
    kspace = torch.ones(2, *shape, dtype=torch.complex64)
    masked = apply_mask(kspace, mask)
    assert torch.equal(mask_from_kspace(masked).pattern, mask.pattern)


@fuzz(
    150,
    kspace=SMALL,
    pattern=SMALL,
    dtype=st.sampled_from(DTYPES),
    value=NUMBERS,
    padding=st.sampled_from([None, (0, 3), (-5, 100), (3, 3), (5, 2), (2**70, 2**71)]),
)
def test_applying_masks(
    kspace: tuple, pattern: tuple, dtype: torch.dtype, value: float, padding: Any
) -> None:
    y, mask = tensor(kspace, dtype, value), tensor(pattern, torch.bool)
    found = answer(apply_mask, y, mask, padding)
    if not isinstance(found, InputError):
        assert found.shape == y.shape
    answer(mask_from_kspace, y)
    acs = answer(find_acs, mask)
    assert isinstance(acs, InputError) or (len(acs) == 2 and min(acs) >= 0)


IMAGES = st.lists(st.sampled_from([0, 1, 2, 7, 9]), max_size=4).map(tuple)


@fuzz(
    200,
    a=IMAGES,
    b=st.none() | IMAGES,
    dtypes=st.tuples(*[st.sampled_from(DTYPES)] * 2),
    value=NUMBERS,
    peak=st.sampled_from([None, *MEASURES]),
    numpy=st.booleans(),
)
def test_metrics(a: tuple, b: Any, dtypes: tuple, value: float, peak: float | None, numpy: bool) -> None:
    target, other = tensor(a, dtypes[0], value), tensor(a if b is None else b, dtypes[1])
    pair = [x.numpy() if numpy and x.dtype is not torch.bfloat16 else x for x in (target, other)]
    for metric in (nmse, lambda *x: psnr(*x, peak), lambda *x: ssim(*x, peak)):
        found = answer(metric, *pair)
        assert isinstance(found, InputError) or (isinstance(found, float) and not math.isnan(found)), found
    same = answer(nmse, pair[0], pair[0])
    assert isinstance(same, InputError) or same == 0


@fuzz(60, shape=IMAGES, crop=st.tuples(*[st.sampled_from([-1, 0, 1, 7, 10**9])] * 2))
def test_crops(shape: tuple[int, ...], crop: tuple[int, int]) -> None:
    found = answer(center_crop, np.ones(shape), crop)
    assert isinstance(found, InputError) or found.shape == (*shape[:-2], *crop)


@fuzz(
    100,
    shape=st.tuples(st.sampled_from([0, 1, 2, 4]), *[st.sampled_from([0, 1, 3, 8, 12])] * 2),
    acs=st.tuples(*[st.sampled_from([-1, 0, 3, 5, 8, 100])] * 2),
    value=st.none() | NUMBERS,
    method=st.sampled_from(["espirit", "low-resolution", "magic"]),
    dtype=st.sampled_from(DTYPES[:5]),
)
def test_coil_maps(shape: tuple, acs: tuple, value: float | None, method: str, dtype: torch.dtype) -> None:
    maps = answer(estimate_maps, tensor(shape, dtype, value), acs, method)
    if not isinstance(maps, InputError):
        assert maps.shape == shape
        assert maps.isfinite().all()
        size = maps.abs().square().sum(0)
        assert bool((size.le(1 + 1e-3)).all())
