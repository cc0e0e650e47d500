"""A training step of the paper's transformers at their width, dense and with four Monarch blocks.

    python benchmarks/transformers/step_time.py [--repeats 5] [--models ViT GPT-2] [--suffix _memory_kept]

Forward, loss, backward and AdamW in one thread, CPU time, dense and Monarch in turn. Models of one and of
three layers are measured; the step of the whole depth N is t₁ + (N − 1) (t₃ − t₁) / 2, since all layers are
alike. Where the time goes comes from torch's profiler, at three layers. Writes
``benchmarks/results/transformers_step_time.{md,json}``.
"""

import argparse
import datetime
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from models import MODELS, Published, training_loss
from parameters import RESULTS

from monarch_sciml.benchmark.harness import machine
from monarch_sciml.nn.convert import monarchize
from monarch_sciml.training import write_json

KINDS = {
    "AdamW": ("Optimizer", "aten::sqrt", "aten::div", "lerp", "addcdiv", "addcmul", "aten::mul_"),
    "linear layers": ("monarch", "Monarch", "aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("attention", "softmax"),
    "GELU": ("gelu", "tanh", "aten::pow"),
    "layer norm": ("layer_norm",),
    "loss": ("log_softmax", "nll_loss", "cross_entropy"),
}
Step = Callable[[], None]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a training step at three layers and at full depth, and shares by kind of work.

    ``linear_share`` is that of the linear layers in the dense step of full depth, ``work`` the multiply-adds
    of the replaced layers, Monarch / dense.
    """

    name: str
    layers: int
    paper: float
    dense: float
    monarch: float
    dense_whole: float
    monarch_whole: float
    linear_share: float
    parts: dict[str, dict[str, float]]
    work: float

    @property
    def ratio(self) -> float:
        """Dense / Monarch at full depth."""
        return self.dense_whole / self.monarch_whole

    @property
    def amdahl(self) -> float:
        """The ratio if the replaced layers took as much less time as they have fewer multiply-adds."""
        return 1 / (1 - self.linear_share * (1 - self.work))


def steps(model: Published, layers: int) -> tuple[list[Step], float]:
    """A training step of the dense and of the Monarch model; multiply-adds of the replaced layers."""
    batch = model.batch()

    def step(monarch: bool) -> tuple[Step, float]:
        torch.manual_seed(0)
        network, work = model.build(layers=layers).train(), 1.0
        if monarch:
            report = monarchize(network, 4, include=model.include, mode="init")
            rows = [row for row in report.rows if not row.reason]
            work = sum(r.macs_after for r in rows) / sum(r.macs_before for r in rows)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

        def run() -> None:
            training_loss(network, *batch).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run, work

    (dense, _), (monarch, work) = step(False), step(True)
    return [dense, monarch], work


def milliseconds(runs: list[Step], repeats: int) -> list[float]:
    """Medians of the CPU times, in turn, after one warm-up each."""
    rounds = []
    for _ in range(1 + repeats):
        times = []
        for run in runs:
            begin = time.process_time()
            run()
            times.append(1e3 * (time.process_time() - begin))
        rounds.append(times)
    return [median(times) for times in zip(*rounds[1:], strict=True)]


def parts(run: Step, vocabulary: int) -> dict[str, float]:
    """Share of a step by kind of work; products with the vocabulary in their shape are the head."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes to stderr
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        run()
    shares = dict.fromkeys([*KINDS, "head", "other"], 0.0)
    for event in profiler.key_averages(group_by_input_shape=True):
        kind = next((k for k, keys in KINDS.items() if any(key in event.key for key in keys)), "other")
        if kind == "linear layers" and any(
            vocabulary in s for s in event.input_shapes if isinstance(s, list)
        ):
            kind = "head"
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: value / total for kind, value in shares.items()}


def measure(model: Published, repeats: int) -> Timing:
    """Both models at one and at three layers."""
    torch.manual_seed(0)
    one, _ = steps(model, 1)
    t1 = milliseconds(one, repeats)
    del one
    three, work = steps(model, 3)
    t3 = milliseconds(three, repeats)
    vocabulary = model.input[-1] if model.input[0] == "tokens" else 1000  # of a language head, or classes
    split = {name: parts(run, vocabulary) for name, run in zip(("dense", "Monarch"), three, strict=True)}
    per_layer = [(c - a) / 2 for a, c in zip(t1, t3, strict=True)]
    whole = [a + (model.layers - 1) * d for a, d in zip(t1, per_layer, strict=True)]
    # of the whole depth: the linear layers are in the layers that repeat
    share = split["dense"]["linear layers"] * t3[0] / 3 * model.layers / whole[0]
    return Timing(model.name, model.layers, model.speed, t3[0], t3[1], whole[0], whole[1], share, split, work)


def table(timings: list[Timing]) -> Iterator[str]:
    """Markdown: times and ratios, then where the time goes."""
    yield (
        "| model | input | 3 layers: dense, ms | Monarch, ms | whole: dense, s | Monarch, s "
        "| ratio | if work decided | paper, GPU |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    inputs = {m.name: m.input for m in MODELS}
    for t in timings:
        kind, batch, *rest = inputs[t.name]
        shown = f"{batch} × {rest[0]} tokens" if rest else f"{batch} {kind}"
        yield (
            f"| {t.name} | {shown} | {t.dense:.0f} | {t.monarch:.0f} | {t.dense_whole / 1e3:.2f} "
            f"| {t.monarch_whole / 1e3:.2f} | **{t.ratio:.2f}** | {t.amdahl:.2f} | {t.paper:g} |"
        )
    kinds = [*KINDS, "head", "other"]
    yield ""
    yield "Where the time goes at three layers, ms (profiler's shares of the medians):"
    yield ""
    yield f"| model | | {' | '.join(kinds)} |"
    yield "|---|---|" + "---:|" * len(kinds)
    for t in timings:
        for way, ms in (("dense", t.dense), ("Monarch", t.monarch)):
            cells = " | ".join(f"{ms * t.parts[way][kind]:.0f}" for kind in kinds)
            yield f"| {t.name} | {way} | {cells} |"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds after a warm-up (default: 5)")
    parser.add_argument("--models", nargs="*", default=[""], help="only those whose names begin so")
    parser.add_argument("--suffix", default="", help="to the names of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [m for m in MODELS if m.name.startswith(tuple(options.models))]
    timings = []
    for model in chosen:
        timings.append(measure(model, options.repeats))
        print(f"{model.name}: {timings[-1].ratio:.2f}", flush=True)
        write(timings, options.suffix, options.repeats)


NOTES = """\
Forward, loss, backward and AdamW in one thread, CPU time with that of the system; four blocks.
Models of one and of three layers are measured; the step of the whole depth N is extrapolated from them,
t₁ + (N − 1) (t₃ − t₁) / 2. "If work decided" is the ratio if the linear layers took less time exactly as they
have fewer multiply-adds; their share of the dense step is the profiler's, measured once. Repetitions
differ by 15 %, those of GPT-2 small by more: half of its short models is the head, which the extrapolation
subtracts, and the rest of the noise with it. It gave 1.05, repeated 1.38 and 1.10, with memory kept 1.49.
Measured at its twelve layers on a quiet machine: 6.09 and 4.47 s, 1.36, with memory kept 1.38.

* The paper has 2.0× for ViT-B/16 and GPT-2 medium alone: as installed they have 1.83 and 1.89 here. Of the
  models where it has less, GPT-2 small is the only one below 1.5: 1.36, against 1.8 in the paper.
* What stays: attention, norms, GELU, copies, and in GPT-2 the vocabulary head, as much work as four or five
  layers; with its tied embedding it is also most of what AdamW updates in small depths.
* As installed, glibc takes large arrays fresh from the system at every step: 300,000 page faults in a step of
  GPT-2 small, a fifth to a third of its CPU time, dense or Monarch. The table `_memory_kept` is with
  `MALLOC_TOP_PAD_=536870912 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592`.
* Other jobs ran on the machine: CPU time leaves out their turns, not what they take of caches and memory.
"""


def write(timings: list[Timing], suffix: str, repeats: int) -> None:
    """``transformers_step_time*.{md,json}``."""
    stamp: dict[str, Any] = {**machine("cpu"), "threads": 1, "rounds": repeats}
    stamp["date"] = datetime.date.today().isoformat()
    lines = [
        "# A training step of the paper's transformers, dense and Monarch",
        "",
        NOTES,
        *table(timings),
        "",
    ]
    lines += [", ".join(f"{k} {v}" for k, v in stamp.items()) + "."]
    (RESULTS / f"transformers_step_time{suffix}.md").write_text("\n".join(lines) + "\n")
    rows = [{**asdict(t), "ratio": t.ratio, "amdahl": t.amdahl} for t in timings]
    write_json(RESULTS / f"transformers_step_time{suffix}.json", {"environment": stamp, "models": rows})


if __name__ == "__main__":
    main()
