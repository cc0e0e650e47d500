"""Metrics: analytic cases, a restatement with plain sums, laws, and clear refusals."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from monarch_sciml.errors import InputError
from monarch_sciml.mri.metrics import center_crop, nmse, per_slice, psnr, scores, ssim, summarise

METRICS = [nmse, psnr, ssim]


def volumes(*shape: int, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.random(shape)
    # slices of different brightness: the data range of the volume is not that of a slice
    target *= np.linspace(0.3, 1, shape[0])[:, None, None]
    return target, np.abs(target + noise * rng.standard_normal(shape))


def test_analytic_cases() -> None:
    target = np.full((3, 9, 11), 2.0)
    assert nmse(target, 0.5 * target) == 0.25
    assert psnr(target, target - 0.02) == pytest.approx(40)  # an error of 1 % of the range
    assert psnr(target, target - 0.02, data_range=20) == pytest.approx(60)
    # constant images: only the comparison of means is left
    c1 = (0.01 * 2) ** 2
    assert ssim(target, 0.5 * target) == pytest.approx((2 * 2 * 1 + c1) / (4 + 1 + c1))
    assert scores(target, target) == {"nmse": 0, "psnr": math.inf, "ssim": pytest.approx(1)}


def restated_ssim(a: np.ndarray, b: np.ndarray, peak: float) -> float:
    """Every window of 7 × 7 by itself."""
    c1, c2, values = (0.01 * peak) ** 2, (0.03 * peak) ** 2, []
    for i in range(a.shape[0] - 6):
        for j in range(a.shape[1] - 6):
            x, y = a[i : i + 7, j : j + 7].ravel(), b[i : i + 7, j : j + 7].ravel()
            (vx, cov), (_, vy) = np.cov(x, y)  # of samples: over n − 1
            means = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
            values.append(means * (2 * cov + c2) / (vx + vy + c2))
    return float(np.mean(values))


@pytest.mark.parametrize("shape", [(2, 13, 16), (3, 7, 11)])
def test_against_plain_sums(shape: tuple[int, int, int]) -> None:
    a, b = volumes(*shape)
    peak, n = a.max(), a.size
    assert nmse(a, b) == pytest.approx(sum((a - b).ravel() ** 2) / sum(a.ravel() ** 2))
    assert psnr(a, b) == pytest.approx(10 * np.log10(peak**2 * n / sum((a - b).ravel() ** 2)))
    assert ssim(a, b) == pytest.approx(
        np.mean([restated_ssim(x, y, peak) for x, y in zip(a, b, strict=True)])
    )
    assert ssim(a, b, 3.0) == pytest.approx(
        np.mean([restated_ssim(x, y, 3.0) for x, y in zip(a, b, strict=True)])
    )


@pytest.mark.parametrize("scale", [1.0, 1e-5])  # raw fastMRI images are of the order 1e-5 to 1e-4
def test_against_skimage_in_single_precision(scale: float) -> None:
    a, b = (scale * v.astype(np.float32) for v in volumes(4, 40, 31))
    peak = a.max()
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=peak), rel=1e-5)
    reference = np.mean([structural_similarity(x, y, data_range=peak) for x, y in zip(a, b, strict=True)])
    assert ssim(a, b) == pytest.approx(reference, abs=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_laws(metric) -> None:
    a, b = volumes(3, 12, 10)
    value = metric(a, b)
    assert metric(7e-6 * a, 7e-6 * b) == pytest.approx(value)  # no units
    assert metric(a[::-1], b[::-1]) == pytest.approx(value)  # no order of slices
    assert metric(a.swapaxes(1, 2), b.swapaxes(1, 2)) == pytest.approx(value)
    worse = metric(a, a + 3 * (b - a))
    assert worse > value if metric is nmse else worse < value
    assert metric(a[1], b[1]) == metric(a[1:2], b[1:2])
    for kind in (torch.from_numpy(a), torch.from_numpy(a).requires_grad_()):
        assert metric(kind, torch.from_numpy(b)) == value
    assert metric(torch.from_numpy(a).bfloat16(), b) == pytest.approx(value, rel=0.05)


def test_slices_are_scored_with_the_range_of_the_volume() -> None:
    a, b = volumes(5, 9, 8)
    slices = per_slice(a, b)
    assert len(slices) == 5
    assert np.mean([s["ssim"] for s in slices]) == pytest.approx(scores(a, b)["ssim"])
    errors = [10 ** (-s["psnr"] / 10) for s in slices]  # over the squared range
    assert -10 * math.log10(np.mean(errors)) == pytest.approx(scores(a, b)["psnr"])
    energies = (a**2).sum((1, 2))
    total = sum(s["nmse"] * e for s, e in zip(slices, energies, strict=True))
    assert total / energies.sum() == pytest.approx(scores(a, b)["nmse"])
    assert per_slice(a, b, 2.0)[0]["psnr"] == pytest.approx(psnr(a[0], b[0], 2.0))


def test_empty_slices_of_a_volume() -> None:
    a, b = volumes(2, 8, 8)
    a[0] = 0
    empty, full = per_slice(a, b)
    assert math.isnan(empty["nmse"])
    assert math.isfinite(empty["psnr"])
    assert math.isfinite(full["nmse"])
    assert math.isfinite(scores(a, b)["nmse"])


def test_mean_and_standard_error() -> None:
    summary = summarise([{"nmse": 1.0, "psnr": 30.0}, {"nmse": 2.0, "psnr": 30.0}, {"nmse": 6.0, "psnr": 30}])
    assert summary["nmse"] == (3.0, pytest.approx(math.sqrt(7 / 3)))  # s² = (4 + 1 + 9) / 2
    assert summary["psnr"] == (30.0, 0.0)
    assert summarise([{"nmse": 1.0}]) == {"nmse": (1.0, None)}
    assert summarise([{"psnr": math.inf}, {"psnr": 1.0}]) == {"psnr": (math.inf, None)}
    with pytest.raises(InputError, match="the scores of at least one volume; found none"):
        summarise([])


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_the_crop_is_in_the_middle(size: int, n: int) -> None:
    line = np.arange(size)
    image = np.stack([line[:, None] + 0 * line, line + 0 * line[:, None]])
    start = (size - n) // 2
    cropped = center_crop(image, (n, size))
    assert cropped.shape == (2, n, size)
    assert cropped[0, :, 0].tolist() == list(range(start, start + n))
    assert torch.equal(center_crop(torch.from_numpy(image), (n, size)), torch.from_numpy(cropped))
    assert center_crop(image, (size, n))[1, 0].tolist() == list(range(start, start + n))


@pytest.mark.parametrize("shape", [(9, 8), (8, 9), (0, 3), (3, -1)])
def test_crops_there_cannot_be(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"an image of at least .*, not empty, to crop from; found shape"):
        center_crop(torch.zeros(2, 8, 8), shape)
    with pytest.raises(InputError, match=r"found shape \(8,\)"):
        center_crop(np.zeros(8), (2, 2))


@pytest.mark.parametrize("metric", [*METRICS, scores, per_slice])
def test_images_that_cannot_be_compared(metric) -> None:
    good = np.ones((2, 8, 8))
    with pytest.raises(InputError, match=r"of one shape; found \(2, 8, 8\) and \(2, 8, 9\); crop them"):
        metric(good, np.ones((2, 8, 9)))
    for wrong in (1j * good, torch.ones(2, 8, 8, dtype=torch.complex64).conj()):
        with pytest.raises(InputError, match="magnitude images as prediction; found dtype complex"):
            metric(good, wrong)
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="a finite prediction; found NaN or infinite values"):
            metric(good, np.where(good > 0, bad, good))
        with pytest.raises(InputError, match="a finite target"):
            metric(torch.full((8, 8), bad), good[0])
    for shape in ((8,), (1, 2, 8, 8), (0, 8, 8)):
        with pytest.raises(InputError, match=r"a target of shape \(H, W\) or \(S, H, W\); found shape"):
            metric(np.ones(shape), good)


def test_targets_without_content() -> None:
    zero, one = np.zeros((2, 8, 8)), np.ones((2, 8, 8))
    with pytest.raises(InputError, match="a target with values other than 0; found zeros only"):
        nmse(zero, one)
    for metric in (psnr, ssim, per_slice):
        with pytest.raises(
            InputError, match=r"a positive data range, .*; found the maximum of the target is 0"
        ):
            metric(zero, one)
        for wrong in (0, -1, math.nan, math.inf):
            with pytest.raises(InputError, match=r"a positive data range, .*; found data_range is"):
                metric(one, one, wrong)


def test_images_smaller_than_the_window() -> None:
    with pytest.raises(InputError, match="at least 7 × 7 for SSIM; found 8 × 6"):
        ssim(np.ones((8, 6)), np.ones((8, 6)))
