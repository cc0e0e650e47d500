"""Timings beside the peers': same weights, same outputs, and no ratio where outputs differ."""

from monarch_sciml.benchmark.harness import Case, Contender, Row, markdown_table, peak_memory, side_by_side
from monarch_sciml.benchmark.report import BenchConfig, Report, bench

__all__ = [
    "BenchConfig",
    "Case",
    "Contender",
    "Report",
    "Row",
    "bench",
    "markdown_table",
    "peak_memory",
    "side_by_side",
]
