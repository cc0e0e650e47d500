"""The script of the paper's table: complete tables, trainings that resume, a report that says how many."""

import importlib.util
from pathlib import Path
from typing import get_args

import pytest

from monarch_sciml.pde.models import NAMES, Kind

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "paper_pde.py"


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """The script, with a scale of seconds and a place of its own."""
    spec = importlib.util.spec_from_file_location("paper_pde", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "paper_pde", module)
    spec.loader.exec_module(module)
    tiny = module.replace(
        module.SCALES["small"],
        samples={"1e-3": 4, "1e-4": 4, "1e-5": 4},
        n_train=2,
        n_test=2,
        every=4,
        frames=dict.fromkeys(module.SOLVERS, 12),
        modes=4,
        width=dict.fromkeys(get_args(Kind), 4),
        epochs={"A": 1, "B": 1},
    )
    monkeypatch.setitem(module.SCALES, "tiny", tiny)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setitem(module.END, "1e-3", 12.0)
    return module


def test_every_model_viscosity_and_seed_is_there(paper):
    for scale in paper.SCALES.values():
        tables = paper.tables(scale)
        for protocol in "AB":
            cases = {case for row in tables[f"protocol-{protocol}"] for case in row}
            assert len(cases) == 5 * 3 * 3
            assert {(c.model, c.viscosity, c.protocol) for c in cases} == {
                (model, viscosity, protocol) for model in get_args(Kind) for viscosity in paper.SOLVERS
            }
        for name in ("data", "modes"):
            assert {case.model for row in tables[name] for case in row} == {"fno", "fno-monarch"}
    assert paper.PUBLISHED.keys() == {(m, v) for m in get_args(Kind) for v in paper.SOLVERS}


def test_trains_once_and_reports_what_is_done(paper, tmp_path, capsys):
    scale = paper.SCALES["tiny"]
    paper.data("1e-3", scale)
    chosen = {name: rows for name, rows in paper.tables(scale).items() if name.startswith("protocol")}
    cases = [row[0] for name in chosen for row in chosen[name] if row[0].viscosity == "1e-3"]
    late = paper.run((cases[0], "tiny", 0.0))
    assert late is None  # the time was up before it began
    results = {case: paper.run((case, "tiny", float("inf"))) for case in cases}
    again = paper.run((cases[0], "tiny", 0.0))  # what is trained takes no time
    assert again == results[cases[0]]
    assert capsys.readouterr().out.count("rollout") == len(cases) + 1
    paper.report("tiny", chosen, results, 1)
    text = (tmp_path / "paper_pde_tiny.md").read_text()
    assert "10 of 90 trainings are done" in text
    for protocol, tail in (("A", " 0.017 |"), ("B", "  |")):
        part = text.split(f"## Protocol {protocol}")[1].split("##")[0]
        rows = [line for line in part.splitlines() if line.startswith("| 1e-3")]
        assert [row.split("|")[2].strip() for row in rows] == [NAMES[model] for model in get_args(Kind)]
        assert rows[0].endswith(tail)
        fno, monarch = (
            results[case].rollout for case in cases if case.protocol == protocol and "fno" in case.model
        )
        assert f"{100 * (monarch / fno - 1):+.0f} %" in rows[1]
    assert (tmp_path / "paper_pde_tiny.png").stat().st_size > 0
    assert len((tmp_path / "paper_pde_tiny.json").read_text()) > 0
