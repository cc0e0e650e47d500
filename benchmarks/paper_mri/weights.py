"""Is the learned transform only density compensation? VarNet with learned weights of k-space in its place.

    python benchmarks/paper_mri/weights.py [--control gains] [--seeds 0 …] [--transform-rate 3]

The control of the table's "VarNet, Monarch": the same network, volumes, masks, seeds, optimiser, and one
transform for all cascades; but it is ``V = Fᴴ diag(w)``, the exact centred inverse FFT of weighted k-space,
and only w is learned. ``gains``: a number per frequency and axis, w = w_y w_xᵀ. ``map``: one for each point,
separable or not. All w are real and begin as 1, so that the network begins as the table's.

Adam moves every number by about the learning rate, and entries of the factors of V are about 0.3 where
weights are 1: ``--transform-rate 10``, a training of its own, lets weights change as fast in proportion.

Resumable, and processes may share the seeds. Trainings, answers by the table's own code, and the NMSE of all
three networks in ``<training>.json``, lie beside those of the table, which are only read. What there is goes
into ``benchmarks/results/paper_mri_weights.md``.
"""

import datetime
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import replace
from statistics import mean
from unittest.mock import patch

import answers as mri
import table
import torch
from answers import Case, Question, Setting
from torch import Tensor, nn

from monarch_sciml.linalg import FactoredTransform
from monarch_sciml.mri import models
from monarch_sciml.mri.recipe import TrainConfig, train
from monarch_sciml.nn import LearnedFourier
from monarch_sciml.training import read_json, write_json
from monarch_sciml.training.run import environment

RATE = TrainConfig.transform_rate
RESULTS = mri.ROOT / "benchmarks" / "results"


class Gains(LearnedFourier):
    """``V = Fᴴ diag(w)`` along each axis: fixed factors, and a number per frequency."""

    def __init__(self, shape: tuple[int, int], *, inverse: bool):
        assert inverse  # the columns of V are then frequencies, its rows pixels
        super().__init__(shape, inverse=inverse, learned=False)
        self.gains_y, self.gains_x = (nn.Parameter(torch.ones(n)) for n in shape)

    def _factors(self, axis: str) -> tuple[Tensor, Tensor]:
        L, R = super()._factors(axis)
        w = getattr(self, f"gains_{axis}").unflatten(0, (len(L), len(R)))  # of column (j1, j2)
        return L, R * w.mT[:, None]  # (j2, c, j1)


class Map(LearnedFourier):
    """``V y = Fᴴ (w ⊙ y)``: a number for each point of centred k-space, on this grid only."""

    def __init__(self, shape: tuple[int, int], *, inverse: bool):
        super().__init__(shape, inverse=inverse, learned=False)
        self.weights = nn.Parameter(torch.ones(shape))

    def operator(self, domain: tuple[int, ...]) -> FactoredTransform:
        """The transform on (..., H, W), as ``VarNet`` uses it."""
        return Weighted(self.weights, self._factors("y"), self._factors("x"))

    def departure(self) -> Tensor:
        """``‖V − Fᴴ‖_F / ‖F‖_F``, of the transform of both axes."""
        return torch.linalg.vector_norm(self.weights - 1) / self.weights.numel() ** 0.5

    def nonunitarity(self) -> Tensor:
        """``‖Vᴴ V − I‖_F / √n``, of the transform of both axes."""
        return torch.linalg.vector_norm(self.weights**2 - 1) / self.weights.numel() ** 0.5


class Weighted(FactoredTransform):
    """A transform of weighted k-space and combined coils, nothing else."""

    H = __call__ = None  # type: ignore[assignment]

    def __init__(self, weights: Tensor, *factors: tuple[Tensor, Tensor]):
        super().__init__(*factors)
        self.weights = weights

    def combine(self, x: Tensor, maps: Tensor) -> Tensor:
        """``Σ_c S̄_c V x_c``."""
        return super().combine(x * self.weights, maps)


CONTROLS = {"gains": Gains, "map": Map}


def compare(control: str, seed: int, rate: float, settings: list[Setting]) -> dict[str, dict[str, float]]:
    """NMSE with the FFT, with Monarch and with the control; trains and answers what is missing."""
    name = f"varnet-{control}" + ("" if rate == RATE else f"-rate{rate:g}")
    *known, ours = (Case(model, seed=seed) for model in ("varnet", "varnet-monarch", name))
    found = {case: [mri.answer(Question(case, s), {}) for s in settings] for case in known}
    config = replace(mri.configuration(ours), model="varnet-monarch", transform_rate=rate)
    with patch.object(models, "LearnedFourier", CONTROLS[control]):  # wherever VarNet-Monarch has one
        train(config)
        found[ours] = [mri.answer(Question(ours, s), {}) for s in settings]
    nmse = {
        f"{s.rate:g}x": {str(case): mean(v["nmse"] for v in of[i]["volumes"]) for case, of in found.items()}
        for i, s in enumerate(settings)
    }
    write_json(config.out.with_name(f"{ours}.json"), nmse)
    return nmse


def main() -> None:
    """Train, evaluate, print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--control", choices=CONTROLS, default="gains", help="default: gains")
    parser.add_argument("--seeds", type=int, nargs="+", default=mri.SEEDS, help="default: the table's")
    parser.add_argument("--transform-rate", type=float, default=RATE, help="default: the table's, 3")
    options = parser.parse_args()
    for seed in options.seeds:
        for at, nmse in compare(options.control, seed, options.transform_rate, table.held_out()).items():
            fft = nmse[str(Case("varnet", seed=seed))]
            for case, error in nmse.items():
                print(f"{at}  {case}: NMSE {error:.5f}, {100 * (error / fft - 1):+.1f} %")
    report()


def report() -> None:
    """Every control trained so far, beside the FFT and Monarch of the same seeds."""
    lines = [
        "# Is the learned transform of VarNet only density compensation?",
        "",
        "VarNet, trained at 2×, 4× and 8× as in [the table](paper_mri.md); NMSE of the held-out simulated",
        "volumes relative to the same network with the FFT, mean over seeds. Monarch: the inverse transform",
        "is learned. Gains: the FFT after one learned number per frequency and axis, 256 of them. Map: one",
        "for each point of k-space, 16,384. Reproduce: `python benchmarks/paper_mri/weights.py`.",
        "",
        "| learned | seeds | at | Monarch | the control |",
        "|---|---|---:|---:|---:|",
    ]
    for control in CONTROLS:
        files = {s: mri.RUNS / f"{Case(f'varnet-{control}', seed=s)}.json" for s in mri.SEEDS}
        found = {seed: read_json(path) for seed, path in files.items() if path.exists()}
        for at in next(iter(found.values()), {}):
            rows = [[*nmse[at].values()] for nmse in found.values()]  # FFT, Monarch, control
            monarch, ours = (100 * (mean(r[i] / r[0] for r in rows) - 1) for i in (1, 2))
            seeds = ", ".join(map(str, found))
            lines.append(f"| {control} | {seeds} | {at} | {monarch:+.1f} % | {ours:+.1f} % |")
    about = {**environment(), "date": datetime.date.today().isoformat()}
    lines += ["", ", ".join(f"{key} {value}" for key, value in about.items()) + "."]
    (RESULTS / "paper_mri_weights.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
