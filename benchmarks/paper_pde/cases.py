"""What is trained for the paper's Navier–Stokes table: models, viscosities, protocols, seeds; two scales."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monarch_sciml.pde import GenerateConfig, TrainConfig, generate
from monarch_sciml.pde.models import NAMES, Kind

__all__ = [
    "BOTH",
    "GENTLE",
    "NAMES",
    "PUBLISHED",
    "RATE",
    "ROOT",
    "SCALES",
    "SEEDS",
    "SOLVERS",
    "Case",
    "Kind",
    "Scale",
    "Tables",
    "configuration",
    "data",
    "tables",
]

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)
BOTH: tuple[Kind, ...] = ("fno", "fno-monarch")
# in the table of rates, relative to the rest: of spectral weights, and of transforms that learn beside them
RATE, GENTLE = 3.0, 0.3
# published are 54, 41 and 42; here a training of any model takes one to four minutes
# sized for the time of a training, not for the number of parameters
CONVOLUTIONAL = {"unet": 8, "tf-net": 8, "resnet": 16}
# the solver's grid where 64 points do not resolve the flow, and how many trajectories fit its cache
SOLVERS = {
    "1e-3": {},
    "1e-4": {"solver_resolution": 128, "batch": 8},
    "1e-5": {"solver_resolution": 256, "batch": 4},
}
END = {"1e-3": 50.0, "1e-4": 30.0, "1e-5": 20.0}
# relative L2, protocol A, 64 × 64, N = 1000 at 1e-3 and 1e-4, as Dao et al. (2022) print them
PUBLISHED = {
    ("fno", "1e-3"): 0.017,
    ("fno", "1e-4"): 0.178,
    ("fno", "1e-5"): 0.155,
    ("fno-monarch", "1e-3"): 0.010,
    ("fno-monarch", "1e-4"): 0.145,
    ("fno-monarch", "1e-5"): 0.136,
    ("unet", "1e-3"): 0.025,
    ("unet", "1e-4"): 0.205,
    ("unet", "1e-5"): 0.198,
    ("tf-net", "1e-3"): 0.023,
    ("tf-net", "1e-4"): 0.225,
    ("tf-net", "1e-5"): 0.227,
    ("resnet", "1e-3"): 0.070,
    ("resnet", "1e-4"): 0.287,
    ("resnet", "1e-5"): 0.275,
}


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    samples: dict[str, int]
    """Trajectories generated for each viscosity; the last ``n_test`` are held out."""
    n_train: int
    n_test: int
    every: int
    frames: dict[str, int]
    """After the initial condition."""
    modes: int
    width: dict[str, int]
    epochs: dict[str, int]
    """For each protocol, as ``batch``."""
    batch: dict[str, int]
    n_trains: tuple[int, ...]
    """Of the table of data efficiency, with as many steps as ``n_train`` has."""
    in_its_time: dict[str, float]
    """Epochs of FNO-Monarch in the time that the FNO takes for one, as measured: for either protocol and for
    the finer grid; and in the time of the U-Net, in protocol A. Empty where nobody has."""
    many_modes: tuple[int, ...]
    fine_modes: tuple[int, ...]
    """Of trainings on all points, where elsewhere one in two is left out. The last is the original's, and the
    others are for the lowest viscosity alone."""
    fine: int
    """Points of the finest grid of what lies beyond the training, twice those of the training."""
    long: int
    """Time to which the longest rollouts go."""
    settings: dict[str, object] = field(default_factory=dict)


SCALES = {
    "small": Scale(
        samples={"1e-3": 540, "1e-4": 240, "1e-5": 240},
        n_train=100,
        n_test=40,
        every=2,
        frames={"1e-3": 20, "1e-4": 20, "1e-5": 20},
        modes=16,
        width={"fno": 16, "fno-monarch": 16} | CONVOLUTIONAL,
        epochs={"A": 20, "B": 20},
        batch={"A": 4, "B": 20},  # steps count more than their size where there are few: 500 and 1900
        n_trains=(50, 200, 500),
        in_its_time={"A": 1.4, "B": 1.75, "grid": 2.2, "U-Net": 2.1},
        many_modes=(8, 24),
        fine_modes=(16, 24),
        fine=64,
        long=50,
        settings={"threads": 1, "device": "cpu"},
    ),
    "full": Scale(
        samples={"1e-3": 1200, "1e-4": 1200, "1e-5": 1200},
        n_train=1000,
        n_test=200,
        every=1,
        frames={"1e-3": 50, "1e-4": 30, "1e-5": 20},
        modes=24,
        width={"fno": 20, "fno-monarch": 20, "unet": 54, "tf-net": 41, "resnet": 42},
        epochs={"A": 500, "B": 500},
        batch={"A": 20, "B": 20},
        n_trains=(50, 100, 200, 500),
        in_its_time={},
        many_modes=(16, 32),
        fine_modes=(),
        fine=128,
        long=100,
        settings={"device": "auto"},
    ),
}


@dataclass(frozen=True)
class Case:
    """One training."""

    model: Kind
    viscosity: str
    protocol: str
    seed: int
    n_train: int
    modes: int
    every: int | None = None
    """Of the stored grid points one in so many, if not as in ``Scale``."""
    spectral_rate: float = 1.0
    transform_rate: float = 1.0
    longer: float = 1
    """So many times the epochs."""
    symmetries: bool = False
    """Whether trajectories are moved by the equation's symmetries."""

    def __str__(self) -> str:
        name = f"{self.model}-{self.viscosity}-{self.protocol}-n{self.n_train}-m{self.modes}-s{self.seed}"
        name += "" if self.every is None else f"-every{self.every}"
        name += "" if self.spectral_rate == 1 else f"-spectral{self.spectral_rate:g}"
        name += "" if self.transform_rate == 1 else f"-transform{self.transform_rate:g}"
        name += "" if self.longer == 1 else f"-longer{self.longer:g}"
        return f"{name}-symmetries" if self.symmetries else name


Tables = dict[str, list[list[Case]]]  # rows of every table, a case for each seed


def tables(scale: Scale) -> Tables:
    """Every table with its rows; a training may be in several."""

    def row(model: Kind, viscosity: str, protocol: str, **changes: Any) -> list[Case]:
        base: dict[str, Any] = {"n_train": scale.n_train, "modes": scale.modes, **changes}
        return [Case(model, viscosity, protocol, seed, **base) for seed in SEEDS]

    def operators(viscosity: str, protocol: str, rate: float = 1, **changes: Any) -> list[list[Case]]:
        """FNO and FNO-Monarch after as many epochs, and FNO-Monarch after as much time."""
        base: dict[str, Any] = {"spectral_rate": rate, **changes}
        rows = [row(model, viscosity, protocol, **base) for model in BOTH]
        if rate != 1 and protocol == "B":  # 500 steps are too few for gentle ones
            base["transform_rate"] = GENTLE
            rows.append(row("fno-monarch", viscosity, protocol, **base))
        rows += for_as_long("fno-monarch", viscosity, protocol, as_long_as=protocol, **base)
        return rows

    def for_as_long(*which: Any, as_long_as: str, longer: float = 1, **changes: Any) -> list[list[Case]]:
        """Of so many more epochs as take the time of another's, if that is known."""
        times = scale.in_its_time.get(as_long_as)
        return [row(*which, longer=longer * times, **changes)] if times else []

    def others(viscosity: str, protocol: str, *models: Kind, **changes: Any) -> list[list[Case]]:
        return [row(model, viscosity, protocol, **changes) for model in models]

    def everyone(protocol: str) -> list[list[Case]]:
        networks = "unet", "tf-net", "resnet"
        return [r for v in SOLVERS for r in operators(v, protocol) + others(v, protocol, *networks)]

    def gently(viscosity: str, as_long_as: str = "B", **changes: Any) -> list[list[Case]]:
        """The same in protocol B with the higher rate, and gentle transforms alone."""
        base: dict[str, Any] = {"spectral_rate": RATE, **changes}
        gentle = {**base, "transform_rate": GENTLE}
        rows = [row("fno", viscosity, "B", **base), row("fno-monarch", viscosity, "B", **gentle)]
        return rows + for_as_long("fno-monarch", viscosity, "B", as_long_as=as_long_as, **gentle)

    def on_all_points(viscosity: str, modes: int) -> list[list[Case]]:
        """FNO and FNO-Monarch after as many epochs; with the original's modes after as much time, too."""
        base: dict[str, Any] = {"every": 1, "modes": modes}
        rows = [row(model, viscosity, "B", **base) for model in BOTH]
        if modes == scale.fine_modes[-1]:
            rows += for_as_long("fno-monarch", viscosity, "B", as_long_as="grid", **base)
        return rows

    def beside_the_unet(viscosity: str) -> list[list[Case]]:
        as_long = for_as_long("fno-monarch", viscosity, "A", as_long_as="U-Net", spectral_rate=RATE)
        return operators(viscosity, "A", RATE) + as_long + others(viscosity, "A", "unet")

    return {
        "protocol-B": everyone("B"),
        # most of what an FNO lacks in protocol B is a higher learning rate there
        "rates": [r for v in SOLVERS for r in operators(v, "B", RATE)],
        # at least as long as the best of the others takes, which stands beside them
        "time": [r for v in SOLVERS for r in operators(v, "B", RATE, longer=2) + others(v, "B", "tf-net")],
        "data": [
            row(model, "1e-3", "B", n_train=n, spectral_rate=RATE) for n in scale.n_trains for model in BOTH
        ],
        "modes": [r for m in scale.many_modes for r in operators("1e-3", "B", RATE, modes=m)]
        + [r for v in ("1e-4", "1e-5") for r in gently(v, modes=scale.many_modes[-1])],
        # 32 × 32 points do not hold what happens at the lowest viscosity
        "grid": [
            r
            for v in SOLVERS
            for m in (scale.fine_modes if v == "1e-5" else scale.fine_modes[-1:])
            for r in on_all_points(v, m)
        ],
        "rates-grid": gently("1e-5", "grid", every=1) if scale.fine_modes else [],
        # a hundred trajectories are few, but each is as many as there are symmetries
        "symmetries": [
            r
            for v in SOLVERS
            for r in gently(v, symmetries=True) + others(v, "B", "unet", "tf-net", symmetries=True)
        ],
        "symmetries-time": [r for v in SOLVERS for r in gently(v, symmetries=True, longer=2)],
        "protocol-A": everyone("A"),
        "rates-A": [r for v in SOLVERS for r in beside_the_unet(v)],
    }


def data(viscosity: str, scale: Scale) -> Path:
    """The trajectories, generated if need be."""
    samples = scale.samples[viscosity]
    config = GenerateConfig(
        samples=samples, viscosity=float(viscosity), end_time=END[viscosity], **SOLVERS[viscosity]
    )
    return generate(ROOT / "data" / f"paper_ns_V{viscosity}_N{samples}.h5", config, progress=False)


def configuration(case: Case, name: str) -> TrainConfig:
    """The published optimiser of the protocol; B adds noise to the input."""
    scale = SCALES[name]
    path = ROOT / "data" / f"paper_ns_V{case.viscosity}_N{scale.samples[case.viscosity]}.h5"
    rates = {"A": {"learning_rate": 1e-3}, "B": {"learning_rate": 2.5e-3, "noise": 0.01}}
    return TrainConfig(
        data=path,
        out=ROOT / "runs" / f"paper_pde_{name}" / f"{case}",
        model=case.model,
        protocol=case.protocol,  # type: ignore[arg-type]
        modes=case.modes,
        width=scale.width[case.model],
        n_train=case.n_train,
        n_test=scale.n_test,
        first_frame=1,
        frames=scale.frames[case.viscosity],
        every=case.every or scale.every,
        batch=scale.batch[case.protocol],
        epochs=max(1, int(case.longer * scale.epochs[case.protocol]) * scale.n_train // case.n_train),
        spectral_rate=case.spectral_rate,
        transform_rate=case.transform_rate,
        symmetries="forced" if case.symmetries else "none",
        seed=case.seed,
        resume=True,
        quiet=True,
        **rates[case.protocol],
        **scale.settings,  # type: ignore[arg-type]
    )
