"""Everything to be known about a GPU in one run of at most eight minutes: correctness, speed, where it goes.

    make gpu-suite        (or: python benchmarks/gpu_suite.py)

First the tests that need a GPU. Then the spectral convolution against neuraloperator, eager and compiled, a
pruned rfft2 and the bare FFTs without any mixing, some of them as CUDA graphs; the Monarch product against
dense and copying ones in float32, TF32 and bfloat16; layers, MRI operators and a training step. Beside each
time stand error, memory, the number of kernels, and the bandwidth: the least bytes that have to be moved,
those of inputs, weights and outputs (twice, with gradients), a second, and as part of what a copy reaches.
A CUDA graph holds its memory before it is called, so that a call takes none.

What fails is recorded in its row, and the rest goes on. Writes ``benchmarks/results/gpu_suite.json`` and
``.md``. Exit status 0; 1 if a test failed, an output differed or something did not run; 2 without a GPU.
"""

import datetime
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from monarch_sciml.benchmark import Case, Contender, linear, mri, side_by_side, spectral, step
from monarch_sciml.benchmark.harness import machine
from monarch_sciml.errors import InputError
from monarch_sciml.kernels import monarch_multiply, spectral_convolution
from monarch_sciml.kernels.dispatch import Backend
from monarch_sciml.linalg import balanced_factors
from monarch_sciml.training import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
REPEATS = 20
PEER_COMPILED = f"{spectral.PEER}, compiled"
TEST_SECONDS, SECONDS = 150, 420
PRODUCTS, ROWS = (256, 512, 1024, 2048, 4096), 16384
# name, dtype, torch's precision of float32 products, tolerance
PRECISIONS = (
    ("float32", torch.float32, "highest", 1e-5),
    ("TF32", torch.float32, "high", 5e-3),
    ("bfloat16", torch.bfloat16, "highest", 3e-2),
)


@dataclass(frozen=True)
class Trial:
    """A case, contenders that may fail to be built, and the least number of bytes that have to be moved."""

    case: Case
    more: Mapping[str, Callable[[], Contender]] = field(default_factory=dict)
    bytes: int | None = None


def gpu_tests() -> dict[str, Any]:
    """Run the tests marked gpu; exit status and last line."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TEST_SECONDS)
    lines = (run.stdout.strip() or run.stderr.strip() or "no output").splitlines()
    return {"passed": run.returncode == 0, "summary": lines[-1]}


def copy_bandwidth(device: str, numbers: int = 2**28) -> float:
    """Bytes read and written a second by a copy of ``numbers`` float32."""
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    case = Case("copy", [Contender("copy", lambda: target.copy_(source), peer=True)])
    (row,) = side_by_side(case, REPEATS, device)
    return 8 * numbers / (1e-3 * row.ms)


def graphed(contender: Contender) -> Contender:
    """The same work captured in a CUDA graph: no launch is paid by the processor. CUDA only."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            contender.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = contender.run()

    def run() -> Any:
        graph.replay()
        return result

    return replace(contender, name=f"{contender.name}, CUDA graph", run=run, peer=False)


def kernel_count(run: Callable[[], Any], device: str) -> int | None:
    """Kernels, copies and fills on the GPU in one call; None on a CPU."""
    if device != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    return sum(e.device_type.name == "CUDA" for e in profile.events() or [])


def usable(run: Callable[[Any], Any]) -> list[Backend]:
    """The backends that can be forced for this operation on this device."""
    found = []
    skipped = {"auto", "reference"}
    if not torch.cuda.is_available():
        skipped.add("triton")  # it would be interpreted
    for backend in get_args(Backend):
        try:
            if backend not in skipped:
                run(backend)
                found.append(backend)
        except InputError:  # not meant for it; other exceptions are failures, and show when it is measured
            continue
        except Exception:
            found.append(backend)
    return found


class Forced(nn.Module):
    """A layer that runs on the backend named, not on the one chosen for it."""

    def __init__(self, conv: Any, backend: Any):
        super().__init__()
        self.conv, self.backend = conv, backend

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        analysis = [t() for t in self.conv.analysis]
        synthesis = [t.adjoint() for t in self.conv.synthesis]
        y = spectral_convolution(x, analysis, self.conv.weight, synthesis, backend=self.backend)
        return y + self.conv.bias


def spectral_trials(device: str, *, quick: bool) -> Iterator[Trial]:
    """Every size, forward and forward + backward, then bare FFTs: less than any layer does.

    What is compiled is so for the main sizes only, because each takes some fifteen seconds.
    """
    for i, (B, C, n, m) in enumerate((*spectral.SIZES, *spectral.GROWING[1:])):
        if quick:
            B, C, n, m = 1, C // 8, n // 4, m // 4
        size = f"{n}², modes {m}, batch {B}, channels {C}"
        models, x = spectral.contenders(B, C, n, m, device)
        for passes, contender in enumerate((spectral.forward, spectral.forward_backward), start=1):
            name = f"{size}, forward{' + backward' * (passes - 1)}"
            more = variants(models, x, contender, compiled=i < len(spectral.SIZES))
            peers = [contender(*model, x, peer=model[0] == spectral.PEER) for model in models[1:]]
            moved = 4 * (2 * x.numel() + 2 * 2 * m * (m + 1) * C * C)
            yield Trial(Case(name, peers), more, passes * moved)
        fft = Contender("rfft2 + irfft2 alone", lambda x=x: torch.fft.irfft2(torch.fft.rfft2(x)), peer=True)
        yield Trial(Case(f"{size}, forward, FFTs alone", [fft]), bytes=8 * x.numel())


def variants(
    models: list[tuple[str, nn.Module]], x: Tensor, contender: Callable[..., Contender], *, compiled: bool
) -> dict[str, Callable[[], Contender]]:
    """Ours in all its forms, and peers compiled or captured, which takes a GPU."""
    (_, ours), (_, neuralop), (_, pruned) = models
    found = {"ours, learned": lambda: contender("ours, learned", ours, x)}
    for backend in usable(lambda b: Forced(ours, b)(x[:1])):
        found[f"ours, {backend}"] = lambda b=backend: contender(f"ours, {b}", Forced(ours, b), x)
    if x.is_cuda:
        found["ours, CUDA graph"] = lambda: graphed(contender("ours", ours, x))
        found["pruned rfft2, CUDA graph"] = lambda: graphed(contender("pruned rfft2", pruned, x))
    if x.is_cuda and compiled:
        torch.compiler.reset()  # the number of variants of a function that it keeps is limited
        for name, model in (("ours, compiled", ours), (PEER_COMPILED, neuralop)):
            found[name] = lambda name=name, model=model: contender(name, torch.compile(model), x)
    return found


def product_trials(device: str, *, quick: bool) -> Iterator[Trial]:
    """The product in every precision, forward and forward + backward."""
    before = torch.get_float32_matmul_precision()
    try:
        for precision, dtype, setting, tolerance in PRECISIONS:
            torch.set_float32_matmul_precision(setting)
            x, L, R = (
                torch.ones(shape, dtype=dtype, device=device) for shape in ((1, 4), (2, 2, 2), (2, 2, 2))
            )
            backends = usable(lambda b, x=x, L=L, R=R: monarch_multiply(x, L, R, backend=b))
            for n in PRODUCTS:
                n, rows = (n // 16, 32) if quick else (n, ROWS)
                for backward in (False, True):
                    case = linear.product(
                        n,
                        rows,
                        device,
                        backward=backward,
                        dtype=dtype,
                        tolerance=tolerance,
                        backends=("auto", *backends),
                    )
                    numbers = rows * n + n * balanced_factors(n)[0]
                    moved = 2 * dtype.itemsize * numbers * (1 + backward)
                    yield Trial(replace(case, name=f"{precision}, {case.name}"), bytes=moved)
    finally:
        torch.set_float32_matmul_precision(before)


SECTIONS: dict[str, Callable[..., Iterator[Trial]]] = {
    "spectral convolution": spectral_trials,
    "Monarch product": product_trials,
    "layers": lambda device, quick: map(Trial, linear.cases(device, quick=quick)),
    "MRI": lambda device, quick: map(Trial, mri.cases(device, quick=quick)),
    "training step": lambda device, quick: map(Trial, step.cases(device, quick=quick)),
}


def measure(trial: Trial, device: str, repeats: int, copy: float) -> list[dict[str, Any]]:
    """Rows of one trial; a contender that raises leaves a row that says so."""
    case, rows, failed = trial.case, [], []
    contenders = list(case.contenders)
    for name, build in trial.more.items():
        try:
            contender = build()
            contender.run()
            contenders.append(contender)
        except Exception as error:
            failed.append({"case": case.name, "method": name, "failed": one_line(error)})
    for contender, row in zip(
        contenders, side_by_side(replace(case, contenders=contenders), repeats, device), strict=True
    ):
        speed = None if trial.bytes is None else trial.bytes / (1e-3 * row.ms)
        rows.append(
            asdict(row)
            | {
                "kernels": kernel_count(contender.run, device),
                "gb_s": None if speed is None else speed / 1e9,
                "of_copy": None if speed is None else speed / copy,
            }
        )
    return rows + failed


def one_line(error: Exception) -> str:
    """Kind and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200].replace('|', '/')}" if text else type(error).__name__


def suite(
    device: str, *, quick: bool = False, repeats: int = REPEATS, seconds: float = SECONDS
) -> dict[str, Any]:
    """All sections: machine, bandwidth of a copy, rows by section. After ``seconds`` no new trial begins."""
    end = time.monotonic() + seconds
    copy = copy_bandwidth(device, 2**16 if quick else 2**28)
    sections: dict[str, list[dict[str, Any]]] = {}
    for title, trials in SECTIONS.items():
        rows = sections[title] = []
        try:
            for trial in trials(device, quick=quick):
                if time.monotonic() > end:
                    rows.append({"case": trial.case.name, "method": "all", "failed": "no time was left"})
                    continue
                try:
                    rows += measure(trial, device, repeats, copy)
                except Exception as error:
                    rows.append({"case": trial.case.name, "method": "all", "failed": one_line(error)})
        except Exception as error:  # while a trial was made: the section ends here
            rows.append({"case": title, "method": "all that follow", "failed": one_line(error)})
        print(f"{title}: {len(rows)} rows", flush=True)
    date = datetime.datetime.now().astimezone().date().isoformat()
    return {"machine": {"date": date, **machine(device)}, "copy_gb_s": copy / 1e9, "sections": sections}


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    lines = [
        "# GPU suite",
        "",
        ", ".join(f"{name} {value}" for name, value in result["machine"].items()) + ".",
        "",
        f"A copy moves {result['copy_gb_s']:.0f} GB/s. Ratio: time of the peer / time. By `make gpu-suite`.",
    ]
    if tests := result.get("tests"):
        lines += ["", f"Tests on this GPU: {tests['summary']}"]
    head = ["case", "method", "median ms (IQR)", "ratio", "error", "MB", "kernels", "GB/s", "of a copy"]
    for title, rows in result["sections"].items():
        lines += ["", f"## {title}", "", f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 2)]
        lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: dict[str, Any]) -> list[str]:
    """One row of a table."""
    if "failed" in row:
        return [row["case"], row["method"], row["failed"], *[""] * 6]
    ratio = "outputs differ" if row["ratio"] is None else "peer" if row["peer"] else f"{row['ratio']:.2f}"
    texts = [row["case"], row["method"], f"{row['ms']:.3g} ({row['iqr']:.2g})", ratio, f"{row['error']:.0e}"]
    texts += [f"{row['memory_mb']:.3g}", "" if row["kernels"] is None else str(row["kernels"])]
    if row["gb_s"] is None:
        return [*texts, "", ""]
    return [*texts, f"{row['gb_s']:.3g}", f"{100 * row['of_copy']:.0f} %"]


def sound(result: dict[str, Any]) -> bool:
    """Whether tests passed, everything ran, and no outputs differed; what the compiler makes of a peer aside.

    (torch 2.13 compiles neuraloperator's complex arithmetic without gradients into another result on a CPU.)
    """
    rows = [row for section in result["sections"].values() for row in section]
    rows = [row for row in rows if row["method"] != PEER_COMPILED]
    tests = result.get("tests", {"passed": True})
    return tests["passed"] and all("failed" not in row and row["ratio"] is not None for row in rows)


def write(result: dict[str, Any], out: Path) -> None:
    """``gpu_suite.json`` and ``gpu_suite.md`` in a folder."""
    write_json(out / "gpu_suite.json", result)
    (out / "gpu_suite.md").write_text(markdown(result))


def main() -> int:
    """Run everything; the exit status."""
    if not torch.cuda.is_available():
        print("gpu_suite: expected a CUDA device; found none that torch can use", file=sys.stderr)
        return 2
    begin = time.monotonic()
    try:
        tests = gpu_tests()
    except Exception as error:
        tests = {"passed": False, "summary": one_line(error)}
    print(f"tests: {tests['summary']}", flush=True)
    result = suite("cuda", seconds=SECONDS - (time.monotonic() - begin)) | {"tests": tests}
    write(result, RESULTS)
    print(f"{RESULTS / 'gpu_suite.md'}, {time.monotonic() - begin:.0f} s")
    return 0 if sound(result) else 1


if __name__ == "__main__":
    raise SystemExit(main())
