"""``monarch-sciml bench``: the topics, their tables, and the record of the machine."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from monarch_sciml.benchmark import linear, mri, spectral, step
from monarch_sciml.benchmark.harness import Row, machine, markdown_table, side_by_side
from monarch_sciml.errors import InputError
from monarch_sciml.training import check_device, write_json

__all__ = ["BenchConfig", "Report", "bench"]

TOPICS = {"spectral": spectral, "linear": linear, "mri": mri, "step": step}


@dataclass(frozen=True)
class BenchConfig:
    """Time ours beside its peers: same weights, same outputs, float32. One Markdown table a topic."""

    topic: tyro.conf.Positional[Literal["all", "spectral", "linear", "mri", "step"]] = "all"
    """What to time. Everything takes minutes."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""
    threads: int | None = None
    """CPU threads; torch decides by default."""
    repeats: int = 10
    """Rounds in which every contender is timed once; the tables hold medians."""
    quick: bool = False
    """Small sizes: to see that everything works, not for its numbers."""
    json: Path | None = None
    """Also write all numbers into this file."""

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise InputError("at least 2 repeats", str(self.repeats), "raise --repeats: quartiles need them")
        if self.threads is not None and self.threads < 1:
            raise InputError("at least 1 thread", str(self.threads), "raise --threads")
        if self.json is not None and (self.json.is_dir() or not self.json.absolute().parent.is_dir()):
            raise InputError("a file in an existing directory", str(self.json), "create it, or change --json")


@dataclass(frozen=True)
class Report:
    """Tables by topic and the machine they come from."""

    machine: dict[str, Any]
    tables: dict[str, list[Row]]

    @property
    def differing(self) -> list[Row]:
        """Contenders whose outputs are not those of the peer: none, unless something is wrong."""
        return [row for rows in self.tables.values() for row in rows if not row.agrees]


def bench(config: BenchConfig, say: Callable[[str], Any] = print) -> Report:
    """Run the topics; every table is said as soon as it is complete. Raises ``InputError`` without a GPU."""
    check_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    date = datetime.datetime.now().astimezone().date().isoformat()
    report = Report({"date": date, "repeats": config.repeats, **machine(config.device)}, {})
    say(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    for topic in TOPICS if config.topic == "all" else [config.topic]:
        cases = TOPICS[topic].cases(config.device, quick=config.quick)
        rows = [row for case in cases for row in side_by_side(case, config.repeats, config.device)]
        report.tables[topic] = rows
        say(f"\n## {topic}\n\n{markdown_table(rows)}")
    if config.json is not None:
        content = {topic: [asdict(row) for row in rows] for topic, rows in report.tables.items()}
        write_json(config.json, {"machine": report.machine, "tables": content})
    return report
