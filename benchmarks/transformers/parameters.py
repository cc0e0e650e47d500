"""Parameters of the paper's transformers, dense and with four Monarch blocks, beside the published counts.

    python benchmarks/transformers/parameters.py

Writes ``benchmarks/results/transformers_parameters.{md,json}``.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from models import MODELS, Published
from torch import nn

from monarch_sciml.nn.convert import monarchize
from monarch_sciml.training import write_json

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Count:
    """Millions of parameters of a model, ours and the paper's.

    ``linear`` is Monarch / dense of the layers that were replaced.
    """

    name: str
    layers: str
    dense: float
    paper_dense: float
    monarch: float
    paper_monarch: float
    linear: float
    reason: str

    @property
    def difference(self) -> float:
        """Monarch count against the paper's, in per cent."""
        return 100 * (self.monarch / self.paper_monarch - 1)


def millions(model: nn.Module) -> float:
    """Parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def count(model: Published) -> Count:
    """Count on the meta device, which holds no numbers."""
    with torch.device("meta"):
        network = model.build(layers=model.layers)
        dense = millions(network)
        report = monarchize(network, 4, include=model.include, mode="init")
    rows = [row for row in report.rows if row.reason is None]
    return Count(
        model.name,
        ", ".join(f"`{pattern}`" for pattern in model.include),
        dense,
        model.dense,
        millions(network),
        model.monarch,
        sum(row.macs_after for row in rows) / sum(row.macs_before for row in rows),
        model.reason,
    )


def table(counts: list[Count]) -> Iterator[str]:
    """Markdown."""
    yield "| model | become Monarch | dense, M | paper | Monarch, M | paper | difference | of the replaced |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for c in counts:
        yield (
            f"| {c.name} | {c.layers} | {c.dense:.1f} | {c.paper_dense:g} | {c.monarch:.1f} "
            f"| {c.paper_monarch:g} | {c.difference:+.1f} % | {100 * c.linear:.0f} % |"
        )


NOTES = """\
Monarch with four blocks in place of the layers that the patterns name; biases, norms, embeddings and
vocabulary heads stay. "Paper" is Dao et al. 2022 (arXiv 2204.00595). The last column is Monarch / dense, of
the replaced layers alone. The patterns are those that come closest to the published counts: Mixers match with
dense token mixing (Monarch there: 6.6 M and 19.9 M) and a dense head, the vision transformers with a Monarch
head (dense heads: 20.4 M and 33.5 M). One matrix for q, k and v together would make GPT-2 small 67.8 M: the
paper's are separate, and so are ours.
"""


def main() -> None:
    """Count and write."""
    counts = [count(model) for model in MODELS]
    lines = ["# Parameters of the paper's transformers", "", NOTES, *table(counts), ""]
    lines += [f"* **{c.name}**: {c.reason}" for c in counts if c.reason]
    lines += ["", "Reproduce: `python benchmarks/transformers/parameters.py`."]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "transformers_parameters.md").write_text("\n".join(lines) + "\n")
    rows = [{**asdict(c), "difference": c.difference} for c in counts]
    write_json(RESULTS / "transformers_parameters.json", {"models": rows})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
