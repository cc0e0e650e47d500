"""The harness measures what it says: times in turn, memory as allocated, ratios of equal outputs only."""

import math
import weakref
from itertools import pairwise

import pytest
import torch

from monarch_sciml import InputError
from monarch_sciml.benchmark import Case, Contender, harness, markdown_table, peak_memory, side_by_side

FLOAT, ROWS = 4, 1000


def block(megabytes: int) -> torch.Tensor:
    return torch.empty(megabytes * ROWS * ROWS // FLOAT)


class Clock:
    """Time passes only where a contender says so."""

    def __init__(self, monkeypatch):
        self.seconds, self.calls = 0.0, []
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.seconds)
        monkeypatch.setattr(harness, "peak_memory", lambda run, device: 3_000_000)

    def contender(self, name, durations, result=None, **options):
        """Takes one duration after the other, the last one for ever."""
        remaining = list(durations)

        def run():
            self.calls.append(name)
            self.seconds += remaining.pop(0) if len(remaining) > 1 else remaining[0]
            return torch.ones(3) if result is None else result

        return Contender(name, run, **options)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_all_take_turns(clock):
    contenders = [clock.contender(name, [1.0], peer=name == "b") for name in "abc"]
    side_by_side(Case("", contenders), 3)
    assert clock.calls[:3] == ["b", "a", "c"]  # compared: the peer first
    assert clock.calls[3:] == ["a", "b", "c"] * (harness.WARM_UPS + 3)


def test_times_are_medians_and_ratios_are_taken_within_a_round(clock):
    # one call to compare and two to warm up, slow; then a machine that gets slower from round to round
    ours = clock.contender("ours", [99, 99, 99, 1, 2, 40])
    peer = clock.contender("peer", [99, 99, 99, 2, 8, 40], peer=True)
    found, itself = side_by_side(Case("case", [ours, peer], points=1000), 3)
    assert (found.case, found.method, found.peer, itself.peer) == ("case", "ours", False, True)
    assert (found.ms, itself.ms) == (2000, 8000)
    assert found.ratio == 2  # the median of 2, 4 and 1; the ratio of the medians is 4
    assert found.iqr == pytest.approx(19500)  # quartiles 1.5 and 21
    assert found.ns_per_point == 2e6
    assert found.memory_mb == 3


def test_a_call_is_timed_without_the_results_of_others_in_memory():
    alive, seen = weakref.WeakSet(), []

    def run():
        seen.append(len(alive))
        result = torch.ones(3)
        alive.add(result)
        return result

    contenders = [Contender(name, run, peer=name == "a") for name in "abc"]
    side_by_side(Case("", contenders), 2)
    compared = len(contenders)
    assert seen[compared:] == [0] * ((harness.WARM_UPS + 2) * 3 + 3)  # and one call each for the memory


ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (ONES * (1 + 1e-3), 1e-3),
        ([ONES, ONES], math.inf),
        (torch.ones(3, 1), math.inf),
        (ONES / 0 * 0, math.nan),
        ([], math.inf),
    ],
)
def test_no_ratio_where_outputs_differ(clock, result, error):
    ours, peer = clock.contender("ours", [1.0], result), clock.contender("peer", [2.0], peer=True)
    row, itself = side_by_side(Case("", [ours, peer]), 2)
    assert row.ratio is None
    assert not row.agrees
    assert row.error == pytest.approx(error, nan_ok=True, rel=1e-3)
    assert itself.agrees
    cells = [line.split(" | ")[3] for line in markdown_table([row, itself]).splitlines()[2:]]
    assert cells == ["outputs differ", "peer"]
    (row, _) = side_by_side(Case("", [ours, peer], tolerance=2e-3), 2)
    assert row.agrees == (error < 2e-3)


def test_every_output_is_compared_with_its_own_scale(clock):
    """A wrong gradient is not hidden by a large output."""
    large = 1e6 * ONES
    ours = clock.contender("ours", [1.0], [large, ONES * 1.01])
    peer = clock.contender("peer", [1.0], [large, ONES], peer=True)
    assert side_by_side(Case("", [ours, peer]), 2)[0].error == pytest.approx(0.01, rel=1e-3)
    wrong = clock.contender("ours", [1.0], [large, ONES * math.nan])
    assert not side_by_side(Case("", [wrong, peer]), 2)[0].agrees


def test_a_reference_binds_the_peer_too(clock):
    ours = clock.contender("ours", [1.0], ONES)
    peer = clock.contender("peer", [1.0], ONES * 1.1, peer=True)
    rows = side_by_side(Case("", [ours, peer], reference=[ONES.double()]), 2)
    assert [row.agrees for row in rows] == [True, False]


def test_what_is_compared_may_be_a_view_of_the_result(clock):
    ours = clock.contender("ours", [1.0], [-ONES, torch.zeros(1)], compared=lambda result: -result[0])
    assert side_by_side(Case("", [ours, clock.contender("peer", [1.0], peer=True)]), 2)[0].agrees


def test_complex_outputs_are_compared_whole():
    z = torch.ones(3, dtype=torch.complex64)
    assert harness.relative_error([z + 1e-3j], [z]) == pytest.approx(1e-3, rel=1e-3)
    assert harness.relative_error([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert harness.relative_error([torch.ones(4)], [torch.zeros(4)]) == 2


def test_errors_name_the_remedy(clock):
    a, b = (clock.contender(name, [1.0], peer=True) for name in "ab")
    with pytest.raises(InputError, match="one peer; found 2 in case; mark one contender as the peer"):
        side_by_side(Case("case", [a, b]), 2)
    with pytest.raises(InputError, match="one peer; found 0"):
        side_by_side(Case("case", []), 2)
    with pytest.raises(InputError, match="at least 2 repeats; found 1; raise --repeats"):
        side_by_side(Case("case", [a]), 1)


def test_real_time_is_measured():
    def wait(seconds):
        def run():
            end = harness.time.perf_counter() + seconds
            while harness.time.perf_counter() < end:
                pass
            return ONES

        return run

    short, long = Contender("short", wait(0.002)), Contender("long", wait(0.006), peer=True)
    row, peer = side_by_side(Case("", [short, long]), 7)
    assert row.ms >= 2  # a busy machine takes longer, never less
    assert peer.ms >= 6
    assert row.ratio is not None
    assert row.ratio > 1


def together():
    return block(4), block(2)


def one_after_the_other():
    a = block(4)
    del a
    return block(3)


def peak_in_the_middle():
    a, b = block(1), block(8)
    del b
    return a, block(2)


def nested():
    return torch.zeros(500, 500).add(1).mul(2).sum()  # 1 MB each, two at a time, and a number


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (together, 6e6),
        (one_after_the_other, 4e6),
        (peak_in_the_middle, 9e6),
        (nested, 2e6),
        (lambda: None, 0),
    ],
)
def test_memory_is_the_worst_moment_of_a_call(run, expected):
    before = block(5)  # not counted
    assert peak_memory(run) == pytest.approx(expected, abs=100)
    assert peak_memory(run) == peak_memory(run)
    del before


class Hungry(torch.autograd.Function):
    """Keeps 2 MB for a backward pass that takes 5 MB and releases them."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(block(2))
        return x * 1

    @staticmethod
    def backward(ctx, *grads):
        (kept,) = ctx.saved_tensors
        del kept
        work = block(5)
        del work
        return grads[0] * 1


def test_memory_of_a_backward_pass_counts():
    x = torch.ones(1, requires_grad=True)
    assert peak_memory(lambda: Hungry.apply(x)) == pytest.approx(2e6, abs=100)
    assert peak_memory(lambda: torch.autograd.grad(Hungry.apply(x), x)) == pytest.approx(7e6, abs=1000)


def test_the_profiler_is_silent(capfd):
    peak_memory(lambda: block(1))
    assert capfd.readouterr() == ("", "")


def test_the_table(clock):
    ours = clock.contender("ours", [1 / 64])
    peer = clock.contender("FFT", [1.0], peer=True)
    table = markdown_table(side_by_side(Case("n = 64", [ours, peer]), 2)).splitlines()
    assert table[0].startswith(
        "| case | method | median ms (IQR) | ratio to the peer | relative error | peak"
    )
    assert table[2] == "| n = 64 | ours | 15.6 (0) | 64.00 | 0 | 3 |"
    assert table[3] == "| n = 64 | FFT | 1000 (0) | peer | 0 | 3 |"
    per_point = markdown_table(side_by_side(Case("n = 64", [ours, peer], points=1000), 2)).splitlines()
    assert per_point[0].endswith("| ns a point |")
    assert len({line.count("|") for line in per_point}) == 1
    assert all(a.count("|") == b.count("|") for a, b in pairwise(table))


def test_the_machine_is_named():
    record = harness.machine("cpu")
    assert record["device"] == "cpu"
    assert record["cpu"].endswith(f", {torch.backends.cpu.get_cpu_capability()}")
    assert record["threads"] == torch.get_num_threads()
    assert {"torch", "neuraloperator", "monarch_sciml"} <= set(record)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_time_and_memory_of_a_gpu():
    x = torch.randn(4096, 4096, device="cuda")
    twice, once = Contender("twice", lambda: x @ x @ x), Contender("once", lambda: x @ x, peer=True)
    row, peer = side_by_side(Case("", [twice, once], tolerance=math.inf), 10, "cuda")
    assert row.ratio is not None
    assert row.ratio == pytest.approx(0.5, rel=0.2)
    assert peer.memory_mb == pytest.approx(4 * 4096**2 / 1e6, rel=0.01)
