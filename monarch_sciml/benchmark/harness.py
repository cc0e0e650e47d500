"""Contenders in turn: time, memory, and a ratio only where the outputs agree."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from monarch_sciml.errors import InputError
from monarch_sciml.kernels.native import memory
from monarch_sciml.training.run import environment

__all__ = ["Case", "Contender", "Row", "machine", "markdown_table", "peak_memory", "side_by_side"]

WARM_UPS = 2


@dataclass(frozen=True)
class Contender:
    """One way to compute what the others compute too.

    ``run`` is timed and returns a tensor or several, the output and, for a backward pass, gradients.
    ``compared`` takes its first result and returns what is compared: gradients in the order of the others,
    without those that the others do not have. One contender of a case is the ``peer``.
    """

    name: str
    run: Callable[[], Any]
    peer: bool = False
    compared: Callable[[Any], Any] = lambda result: result


@dataclass(frozen=True)
class Case:
    """Contenders with the same weights and input.

    ``tolerance`` bounds the relative error of every output against the peer's or, where given, against
    ``reference``, the same outputs in higher precision. ``points`` are the numbers of the input: where given,
    the table has nanoseconds a point.
    """

    name: str
    contenders: Sequence[Contender]
    tolerance: float = 1e-5
    points: int | None = None
    reference: Sequence[Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """What was measured of one contender; ``ratio`` is peer time / its time, None where outputs differ."""

    case: str
    method: str
    peer: bool
    ms: float
    iqr: float
    ratio: float | None
    error: float
    memory_mb: float
    ns_per_point: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the outputs are those of the peer, to the tolerance of the case."""
        return self.ratio is not None


def side_by_side(case: Case, repeats: int, device: str = "cpu") -> list[Row]:
    """Time all contenders of a case in turn, so that all of them see the same machine.

    Outputs are compared first: max over outputs of ‖found − expected‖ / ‖expected‖. After two warm-ups each
    of ``repeats`` rounds calls every contender once. ``ms`` is the median over rounds, ``iqr`` the distance
    of its quartiles, ``ratio`` the median of the ratios within a round. Memory is that of one more call.
    Raises ``InputError`` without exactly one peer or with fewer than two repeats.
    """
    peers = [i for i, contender in enumerate(case.contenders) if contender.peer]
    if len(peers) != 1:
        raise InputError("one peer", f"{len(peers)} in {case.name}", "mark one contender as the peer")
    if repeats < 2:
        raise InputError("at least 2 repeats", str(repeats), "raise --repeats: quartiles need them")
    errors = _errors(case, case.contenders[peers[0]])
    rounds = [[_milliseconds(c.run, device) for c in case.contenders] for _ in range(WARM_UPS + repeats)]
    times = list(zip(*rounds[WARM_UPS:], strict=True))
    rows = []
    for contender, ms, error in zip(case.contenders, times, errors, strict=True):
        lower, _, upper = quantiles(ms, n=4, method="inclusive")
        ratio = median(p / own for p, own in zip(times[peers[0]], ms, strict=True))
        rows.append(
            Row(
                case=case.name,
                method=contender.name,
                peer=contender.peer,
                ms=median(ms),
                iqr=upper - lower,
                ratio=ratio if error <= case.tolerance else None,  # not when the error is not a number
                error=error,
                memory_mb=peak_memory(contender.run, device) / 1e6,
                ns_per_point=None if case.points is None else 1e6 * median(ms) / case.points,
            )
        )
    return rows


@torch.no_grad()
def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest ‖f − e‖ / ‖e‖ over the tensors, absolute where e = 0; infinite where shapes differ."""
    if [f.shape for f in found] != [e.shape for e in expected]:
        return float("inf")
    errors = []
    for f, e in zip(found, expected, strict=True):
        difference, size = float((f.to(e.dtype) - e).norm()), float(e.norm())
        errors.append(difference / size if size else difference)
    # torch's max: in Python's a nan would be lost
    return float(torch.tensor(errors, dtype=torch.float64).max()) if errors else float("inf")


def _errors(case: Case, peer: Contender) -> list[float]:
    """Of the first call of every contender."""
    first = _outputs(peer)
    expected = first if case.reference is None else case.reference
    return [relative_error(first if c is peer else _outputs(c), expected) for c in case.contenders]


def _outputs(contender: Contender) -> Sequence[Tensor]:
    tensors = contender.compared(contender.run())
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _milliseconds(run: Callable[[], Any], device: str) -> float:
    # the result is kept until the clock has stopped: giving memory back is not part of the method
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()  # pyright: ignore[reportCallIssue]
        result = run()
        end.record()  # pyright: ignore[reportCallIssue]
        end.synchronize()
        milliseconds = start.elapsed_time(end)
    else:
        begin = time.perf_counter()
        result = run()
        milliseconds = 1e3 * (time.perf_counter() - begin)
    del result
    return milliseconds


def peak_memory(run: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes that torch holds at the worst moment of a call, above what it holds before.

    On CUDA the caching allocator knows. On a CPU the profiler records every allocation and release, and the
    running sum is replayed. What libraries take for themselves, such as the work space of an FFT, is unseen.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "6"
    )  # or the profiler writes to stderr when it starts and stops
    profile: Any = torch.autograd.profiler.profile(use_kineto=True, profile_memory=True)
    with memory.fresh(), profile:
        run()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):  # stable: as recorded, where times are equal
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine(device: str) -> dict[str, Any]:
    """What a timing depends on: device, processor with its vector instructions, threads, versions."""
    vectors = torch.backends.cpu.get_cpu_capability()
    record = {**environment(), "cpu": f"{_cpu_model()}, {vectors}"}
    return record if device == "cuda" else {**record, "device": "cpu"}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as Markdown; the ratio is peer time / ours, above one where ours is quicker."""
    per_point = any(row.ns_per_point is not None for row in rows)
    head = ["case", "method", "median ms (IQR)", "ratio to the peer", "relative error", "peak memory MB"]
    head += ["ns a point"] if per_point else []
    lines = [_line(head), "|---|---|" + "---:|" * (len(head) - 2)]
    for row in rows:
        ratio = "outputs differ" if row.ratio is None else "peer" if row.peer else f"{row.ratio:.2f}"
        cells = [row.case, row.method, f"{_short(row.ms)} ({_short(row.iqr)})", ratio]
        cells += [f"{row.error:.0e}" if row.error else "0", _short(row.memory_mb)]
        if per_point:
            cells.append("" if row.ns_per_point is None else _short(row.ns_per_point))
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
