"""The command line: ``monarch-sciml pde generate | train | evaluate``, ``monarch-sciml mri simulate | train |
reconstruct | evaluate``, ``monarch-sciml bench`` and ``monarch-sciml info``.

Each command is a frozen dataclass; tyro makes options and ``--help`` from its fields. What is imported here
is light enough that ``--help`` answers at once. Results go to stdout, as lines without control characters:
tables in Markdown, then the files with what each is; with ``--quiet`` the path or the table alone. Progress,
if stderr is a terminal, errors and warnings, a line each, go to stderr.
"""

import contextlib
import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from monarch_sciml import __version__
from monarch_sciml.benchmark import BenchConfig, bench
from monarch_sciml.errors import InputError
from monarch_sciml.mri import evaluation as mri_evaluation
from monarch_sciml.mri import recipe as mri_recipe
from monarch_sciml.mri import reconstruction
from monarch_sciml.mri.simulation import SimulateConfig, simulate
from monarch_sciml.pde import TrajectoryDataset
from monarch_sciml.pde.evaluation import EvaluateConfig, evaluate, markdown_table
from monarch_sciml.pde.generation import GenerateConfig, generate
from monarch_sciml.pde.recipe import TrainConfig, train
from monarch_sciml.training import check_device, last_row
from monarch_sciml.training.distributed import world

__all__ = ["main"]

# what lies in a folder, by name or pattern: only these are listed
RUN = {
    "config.json": "settings, data and versions",
    "metrics.csv": "every epoch",
    "last.ckpt": "checkpoint",
    "tensorboard": "the same curves, for tensorboard --logdir",
    "model": "weights and configuration, to load, evaluate and share",
}
EVALUATION = {
    "table.md": "the table above",
    "metrics.json": "every number, also frame by frame",
    "evaluation.json": "what was evaluated",
    "rollout.png": "truth, predictions and errors at four times",
    "rollout.gif": "the same, moving",
    "error_over_time.png": "error of every frame",
    "spectrum.png": "energy spectrum of the last frame",
    "training.png": "held-out error against seconds of training",
    "transform.png": "what the transforms of the first layer learned",
}
IMAGES = {
    "*.h5": "reconstruction (slices, height, width)",
    "png": "every slice",
    "*.nii.gz": "volumes",
    "table.md": "the table above",
    "report.json": "the same for programs",
}
SCORES = {
    "table.md": "the table above",
    "metrics.json": "every volume and slice",
    "comparison.png": "the middle slice of the first volume, and its errors",
}
FIGURES = {
    "pde": "one_step, rollout: relative L2 errors of held-out trajectories.",
    "mri": "nmse, psnr in dB, ssim: means over held-out slices.",
}
DESCRIPTION = "Learned Monarch transforms for neural operators and MRI. --version prints the version."
MOST_THREADS = 1024  # torch's thread pool crashes at some thousands


@dataclass(frozen=True)
class Generate:
    """Simulate Navier–Stokes trajectories into an HDF5 file. A killed run continues where it stopped."""

    out: Path
    """The file to write, ending in .h5; its configuration is saved beside it."""
    config: GenerateConfig = field(default_factory=GenerateConfig)
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to simulate."""
    quiet: bool = False
    """No progress bar; print the path alone."""


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
    """No progress bar; print the folder alone."""


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
    """Run one command.

    A mistake in data or settings ends in one line on stderr and exit status 2, an interruption in 130, and a
    reader that leaves (``| head``) in 141, as if by its signal.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal without × gets a question mark
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    with _reader_may_leave(), _warnings_in_a_line():
        try:
            if [*(sys.argv[1:] if arguments is None else arguments)] == ["--version"]:
                print(f"monarch-sciml {__version__}")
                return
            command = _parse(arguments)
            _run(command.command if isinstance(command, (Pde, Mri)) else command)
        except BrokenPipeError:
            raise
        except (InputError, FloatingPointError) as error:  # the latter: a solver that found no stable step
            _complain(str(error))
            raise SystemExit(2) from None
        except OSError as error:
            _complain(str(InputError("files that can be read and written", str(error), "check the paths")))
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate" not in str(error):
                raise
            _complain(str(InputError("enough memory for these settings", "too little", "lower them")))
            raise SystemExit(2) from None
        except KeyboardInterrupt as interruption:
            _complain(str(interruption) or "interrupted")
            raise SystemExit(130) from None


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):  # so that nothing is left to be flushed into the pipe at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


@contextlib.contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Those that are for people; what is for developers keeps file and line."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if category is UserWarning:
                _complain(f"warning: {message}")
            else:
                others(message, category, *place)

        warnings.showwarning = show
        yield


def _complain(message: str) -> None:
    """One line, whatever is in a file name or in a library's message."""
    print(f"monarch-sciml: {_printable(' '.join(message.split()))}", file=sys.stderr)


def _say(*lines: str) -> None:
    """Print lines; nothing in file names and headers, which come from elsewhere, commands the terminal."""
    for text in lines:
        print("\n".join(_printable(line) for line in text.split("\n")), flush=True)


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def _parse(arguments: Sequence[str] | None) -> Pde | Mri | BenchConfig | Info:
    style = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)

    def parse() -> Pde | Mri | BenchConfig | Info:
        return tyro.cli(Command, prog="monarch-sciml", description=DESCRIPTION, args=arguments, config=style)

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
    quiet = getattr(command, "quiet", False)
    progress = sys.stderr.isatty() and not quiet
    if (getattr(command, "threads", None) or 1) > MOST_THREADS:
        raise InputError(f"at most {MOST_THREADS} threads", f"{command.threads}", "lower --threads")
    match command:
        # of several processes that share the work, one sees all of it
        case Generate():
            check_device(command.device)
            path = generate(command.out, command.config, progress=progress, device=command.device)
            if path.exists():
                files = {path.name: _trajectories(path), f"{path.stem}.json": "its settings"}
                _say(*([str(path)] if quiet else _listing(path.parent, files)))
        case Simulate():
            paths = simulate(command.out, command.config, progress=progress)
            if all(path.exists() for path in paths):
                volumes = {"sim_*.h5": f"{len(paths)} volumes of k-space in fastMRI's format"}
                _say(*([str(command.out)] if quiet else _listing(command.out, volumes)))
        case reconstruction.ReconstructConfig():
            if reports := reconstruction.reconstruct(command, lambda said: _complain(f"warning: {said}")):
                _say(_aligned(reconstruction.markdown_table(reports)))
                _say(*([] if quiet else ["", *_listing(command.out, IMAGES)]))
        case TrainConfig():
            _trained(train(command), quiet, "pde")
        case mri_recipe.TrainConfig():
            _trained(mri_recipe.train(command), quiet, "mri")
        case EvaluateConfig():
            _say(_aligned(markdown_table(evaluate(command))))
            _say(*([] if quiet else ["", *_listing(command.out, EVALUATION)]))
        case mri_evaluation.EvaluateConfig():
            _say(_aligned(mri_evaluation.markdown_table(mri_evaluation.evaluate(command))))
            _say(*([] if quiet or command.out is None else ["", *_listing(command.out, SCORES)]))
        case BenchConfig():
            if rows := bench(command, _say).differing:
                cells = ", ".join(f"{row.method} in {row.case}" for row in rows)
                _complain(f"outputs differ: {cells}")
                raise SystemExit(1)
        case Info():
            from monarch_sciml.kernels import native
            from monarch_sciml.training.run import environment

            facts = environment() | {"C++ kernels": "compiled" if native.available() else "not available"}
            _say(*(f"{name:>14}  {value}" for name, value in facts.items()))


def _trained(run: Path, quiet: bool, field: Literal["pde", "mri"]) -> None:
    """The figures of the last epoch and the files, or the run directory alone; of the first process."""
    if world()[0]:
        return
    if quiet:
        _say(str(run))
        return
    last = last_row(run)
    cells = [f"{value:.4g}" for value in last.values()]
    table = [list(last), ["---:"] * len(cells), cells]
    _say("", _aligned("\n".join(f"| {' | '.join(row)} |" for row in table)), "", FIGURES[field], "")
    _say(*_listing(run, RUN))


def _trajectories(path: Path) -> str:
    data = TrajectoryDataset(path)
    points = " × ".join(map(str, data.grid))
    return f"{len(data)} trajectories × {data.n_times} times × {points} points"


def _listing(folder: Path, meaning: Mapping[str, str]) -> list[str]:
    """The folder, and what of ``meaning`` is in it: a line for each name or pattern."""
    found = []
    for pattern, what in meaning.items():
        paths = sorted(folder.glob(pattern)) if "*" in pattern else [folder / pattern]
        if paths := [path for path in paths if path.exists()]:
            name = paths[0].name if len(paths) == 1 else f"{pattern} ({len(paths)} files)"
            found.append((name + "/" * paths[0].is_dir(), what))
    width = max((len(name) for name, _ in found), default=0)
    return [f"{folder}{os.sep}", *(f"  {name:{width}}  {what}" for name, what in found)]


def _aligned(markdown: str) -> str:
    """The same Markdown with the columns of its tables one below the other, as they are to be read.

    A terminal that is too narrow for a table gets it without bars.
    """
    lines, table = [], []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in line.strip("|").split("|")])
            continue
        lines += _aligned_table(table) if table else []
        lines.append(line)
        table = []
    return "\n".join(lines).rstrip("\n")


def _aligned_table(table: list[list[str]]) -> list[str]:
    right = [rule.endswith(":") for rule in table[1]]
    words = [row for i, row in enumerate(table) if i != 1]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(*words, strict=True)]
    rules = ["-" * (width - to_right) + ":" * to_right for width, to_right in zip(widths, right, strict=True)]
    narrow = sys.stdout.isatty() and sum(widths) + 3 * len(widths) + 1 > shutil.get_terminal_size().columns
    lines = []
    for row in [words[0], rules, *words[1:]]:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(cells) if narrow else f"| {' | '.join(cells)} |")
    return lines
