"""The command line: ``monarch-sciml pde generate | train | evaluate``, ``monarch-sciml mri simulate | train |
reconstruct | evaluate``, ``monarch-sciml bench`` and ``monarch-sciml info``.

Each command is a frozen dataclass; tyro makes options and ``--help`` from its fields. What is imported here
is light enough that ``--help`` answers at once.
"""

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from monarch_sciml.benchmark import BenchConfig, bench
from monarch_sciml.errors import InputError
from monarch_sciml.mri import evaluation as mri_evaluation
from monarch_sciml.mri import recipe as mri_recipe
from monarch_sciml.mri import reconstruction
from monarch_sciml.mri.simulation import SimulateConfig, simulate
from monarch_sciml.pde.evaluation import EvaluateConfig, evaluate, markdown_table
from monarch_sciml.pde.generation import GenerateConfig, generate
from monarch_sciml.pde.recipe import TrainConfig, train
from monarch_sciml.training import check_device

__all__ = ["main"]


@dataclass(frozen=True)
class Generate:
    """Simulate Navier–Stokes trajectories into an HDF5 file. A killed run continues where it stopped."""

    out: Path
    """The file to write, ending in .h5; its configuration is saved beside it."""
    config: GenerateConfig = field(default_factory=GenerateConfig)
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to simulate."""
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class Pde:
    """Neural operators on PDE trajectories."""

    command: (
        Annotated[Generate, tyro.conf.subcommand("generate")]
        | Annotated[TrainConfig, tyro.conf.subcommand("train")]
        | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    )


@dataclass(frozen=True)
class Simulate:
    """Simulate fully sampled k-space in fastMRI's format. A killed run continues where it stopped."""

    out: Path
    """The folder for the files; their configuration is saved beside them."""
    config: SimulateConfig = field(default_factory=SimulateConfig)
    quiet: bool = False
    """No progress bar."""


@dataclass(frozen=True)
class Mri:
    """MRI reconstruction: simulate k-space, train networks, reconstruct files, compare with targets."""

    command: (
        Annotated[Simulate, tyro.conf.subcommand("simulate")]
        | Annotated[mri_recipe.TrainConfig, tyro.conf.subcommand("train")]
        | Annotated[reconstruction.ReconstructConfig, tyro.conf.subcommand("reconstruct")]
        | Annotated[mri_evaluation.EvaluateConfig, tyro.conf.subcommand("evaluate")]
    )


@dataclass(frozen=True)
class Info:
    """Print versions, threads and device: for the record, and for bug reports."""


Command = (
    Annotated[Pde, tyro.conf.subcommand("pde")]
    | Annotated[Mri, tyro.conf.subcommand("mri")]
    | Annotated[BenchConfig, tyro.conf.subcommand("bench")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. A mistake in data or settings ends in one line on stderr and exit status 2."""
    try:
        command = _parse(arguments)
        _run(command.command if isinstance(command, (Pde, Mri)) else command)
    except (InputError, FloatingPointError) as error:  # the latter: a solver that found no stable step
        print(f"monarch-sciml: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("monarch-sciml: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _parse(arguments: Sequence[str] | None) -> Pde | Mri | BenchConfig | Info:
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)

    def parse() -> Pde | Mri | BenchConfig | Info:
        return tyro.cli(Command, prog="monarch-sciml", args=arguments, config=style)

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return parse()
    except SystemExit as end:
        # tyro would print what a configuration refuses in a frame; here it gets its one line
        error: BaseException | None = end
        while error := error.__context__:
            if isinstance(error, InputError):
                raise error from None
    return parse()  # again, aloud: help, or what is wrong with the options


def _run(command: Any) -> None:
    match command:
        case Generate():
            check_device(command.device)
            progress = sys.stderr.isatty() and not command.quiet
            print(generate(command.out, command.config, progress=progress, device=command.device))
        case TrainConfig():
            print(train(command))
        case EvaluateConfig():
            print(markdown_table(evaluate(command)))
            print("\n".join(str(path) for path in sorted(command.out.iterdir())))
        case Simulate():
            progress = sys.stderr.isatty() and not command.quiet
            paths = simulate(command.out, command.config, progress=progress)
            print(f"{len(paths)} volumes in {command.out}")
        case mri_recipe.TrainConfig():
            print(mri_recipe.train(command))
        case reconstruction.ReconstructConfig():
            print(reconstruction.markdown_table(reconstruction.reconstruct(command)))
            print("\n".join(str(path) for path in sorted(command.out.iterdir())))
        case mri_evaluation.EvaluateConfig():
            print(mri_evaluation.markdown_table(mri_evaluation.evaluate(command)))
        case BenchConfig():
            if rows := bench(command).differing:
                cells = ", ".join(f"{row.method} in {row.case}" for row in rows)
                print(f"monarch-sciml: outputs differ: {cells}", file=sys.stderr)
                raise SystemExit(1)
        case Info():
            from monarch_sciml.kernels import native
            from monarch_sciml.training.run import environment

            facts = environment() | {"C++ kernels": "compiled" if native.available() else "not available"}
            print("\n".join(f"{name:>14}  {value}" for name, value in facts.items()))
