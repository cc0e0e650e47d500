"""Time of the unrolled network with learned transforms against the same one with the FFT.

    python benchmarks/mri_speed.py [--threads 2] [--repeats 15]

One slice of 16 coils, reconstruction and a step of training, the two networks in turn within one process, so
that both see the same machine; medians, and the ratio of each pair. Also the transforms alone: the centred
orthonormal FFT of torch with its shifts, as MRI code uses it, the bare FFT without shifts for comparison, and
the learned transform, by its factors and as matrices pruned to the sampled columns. Writes
``benchmarks/results/mri_speed_N_threads.md``.
"""

import argparse
import datetime
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from monarch_sciml.linalg import FourierTransform, SeparableTransform
from monarch_sciml.mri.masks import MaskConfig, draw_mask
from monarch_sciml.mri.models import ModelConfig
from monarch_sciml.nn import LearnedFourier
from monarch_sciml.training.run import environment

RESULTS = Path(__file__).resolve().parent / "results"
COILS = 16
GRIDS = ((320, 320), (640, 368), (128, 128))


def in_turn(functions: dict[str, Callable[[], torch.Tensor]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call; all functions once before the first is timed again."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 2):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found - expected).norm() / expected.norm())


def step(model: torch.nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """An image with gradients of all parameters."""
    model.zero_grad()
    image = model(*inputs)
    image.abs().square().sum().backward()
    return image.detach()


def networks(grid: tuple[int, int], repeats: int, *, training: bool = False) -> list[str]:
    """Rows: mask, milliseconds of both networks, ratio, relative difference at initialisation."""
    rows = []
    for kind, masks in (
        ("random columns 4×", MaskConfig("random")),
        ("Poisson disc 4×", MaskConfig("poisson", (4.0,), (0.12,))),
    ):
        pattern = draw_mask(masks, grid, 0).pattern[None]
        maps = torch.randn(1, COILS, *grid, dtype=torch.complex64)
        maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
        kspace = torch.randn(1, COILS, *grid, dtype=torch.complex64) * pattern
        models = {}
        for name in ("varnet", "varnet-monarch"):
            torch.manual_seed(0)
            models[name] = ModelConfig(name, grid).build().eval()
        models["varnet-monarch"].load_state_dict(models["varnet"].state_dict(), strict=False)
        inputs = kspace, pattern, maps
        calls = {
            name: partial(step, model, *inputs) if training else partial(model, *inputs)
            for name, model in models.items()
        }
        outputs = [call() for call in calls.values()]
        times = in_turn(calls, repeats)
        fft, monarch = times.values()
        ratio = median(m / f for f, m in zip(fft, monarch, strict=True))
        rows.append(
            f"| {grid[0]} × {grid[1]} | {kind} | {1e3 * median(fft):.0f} | {1e3 * median(monarch):.0f} "
            f"| {ratio:.2f} | {relative(outputs[1], outputs[0]):.0e} |"
        )
    return rows


def transforms(grid: tuple[int, int], repeats: int) -> str:
    """A row: milliseconds of each form of the transform, relative error of the learned one."""
    x = torch.randn(COILS, *grid, dtype=torch.complex64)
    fft = FourierTransform(x.shape)
    module = LearnedFourier(grid)
    learned = module.operator(x.shape)
    columns = draw_mask(MaskConfig("random"), grid, 0).pattern[0].nonzero().squeeze(1)
    pruned = SeparableTransform(module.matrix("y"), module.matrix("x")[columns], (COILS,))
    assert relative(pruned(x), fft(x)[..., columns]) < 1e-5
    calls = {
        "centred FFT": lambda: fft(x),
        "bare FFT": lambda: torch.fft.fft2(x, norm="ortho"),
        "learned": lambda: learned(x),
        "matrices, pruned": lambda: pruned(x),
    }
    times = in_turn(calls, repeats)
    cells = [f"{1e3 * median(t):.1f}" for t in times.values()]
    return f"| {grid[0]} × {grid[1]} | {' | '.join(cells)} | {relative(learned(x), fft(x)):.0e} |"


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        rows = [row for grid in GRIDS for row in networks(grid, options.repeats)]
        alone = [transforms(grid, options.repeats) for grid in GRIDS]
    steps = [row for grid in GRIDS for row in networks(grid, max(3, options.repeats // 3), training=True)]
    header = [
        "| grid | mask | varnet | varnet-monarch | ratio | difference at initialisation |",
        "|---|---|---:|---:|---:|---:|",
    ]
    versions = ", ".join(f"{k} {v}" for k, v in environment().items())
    lines = [
        "# Unrolled networks: learned transforms against the FFT",
        "",
        f"{datetime.date.today()}; {versions}. By `python benchmarks/mri_speed.py --threads "
        f"{options.threads}`: {COILS} coils, complex64, 4 cascades, milliseconds a slice (medians), ratio: "
        "median over pairs.",
        "",
        *header,
        *rows,
        "",
        "A step of training, forward and backward:",
        "",
        *header,
        *steps,
        "",
        "The transform of all coils alone:",
        "",
        "| grid | centred FFT | FFT without shifts | learned, by factors | as matrices, 4× columns | error |",
        "|---|---:|---:|---:|---:|---:|",
        *alone,
        "",
    ]
    text = "\n".join(lines)
    (RESULTS / f"mri_speed_{options.threads}_threads.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
