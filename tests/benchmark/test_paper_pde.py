"""The paper's table: complete, trainings that resume, and a report that says how many there are."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from monarch_sciml.pde.models import NAMES, Kind

FOLDER = Path(__file__).parents[2] / "benchmarks" / "paper_pde"
SCRIPTS = ("table", "cases", "beyond", "steps", "report")


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """The scripts, with a scale of seconds and a place of their own; forgotten afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    script = SimpleNamespace(**{name: import_module(name) for name in SCRIPTS})
    tiny = replace(
        script.cases.SCALES["small"],
        samples={"1e-3": 4, "1e-4": 4, "1e-5": 4},
        n_train=2,
        n_test=2,
        every=4,
        frames=dict.fromkeys(script.cases.SOLVERS, 12),
        modes=4,
        width=dict.fromkeys(get_args(Kind), 4),
        epochs={"A": 1, "B": 1},
        batch={"A": 2, "B": 2},
        in_its_time={},
        fine_modes=(4,),
        long=14,
    )
    monkeypatch.setitem(script.cases.SCALES, "tiny", tiny)
    monkeypatch.setattr(script.cases, "ROOT", tmp_path)
    monkeypatch.setattr(script.report, "RESULTS", tmp_path)
    monkeypatch.setitem(script.cases.END, "1e-3", 14.0)
    yield script
    torch.set_num_threads(threads)
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def test_every_model_viscosity_and_seed_is_there(paper):
    for scale in paper.cases.SCALES.values():
        tables = paper.cases.tables(scale)
        for protocol in "AB":
            cases = {case for row in tables[f"protocol-{protocol}"] for case in row}
            longer = protocol in scale.in_its_time  # FNO-Monarch, for as long as the FNO takes
            assert len(cases) == 3 * 3 * (5 + longer)
            assert {case.seed for case in cases} == {0, 1, 2}
            assert {(c.model, c.viscosity, c.protocol) for c in cases} == {
                (model, viscosity, protocol) for model in get_args(Kind) for viscosity in paper.cases.SOLVERS
            }
        for name in ("data", "modes", "rates", *(["grid"] if scale.every > 1 else [])):
            assert {case.model for row in tables[name] for case in row} == {"fno", "fno-monarch"}
        assert all(len(row) == 3 for rows in tables.values() for row in rows)
        epochs = {
            model: {c.longer for row in tables["time"] for c in row if c.model == model} for model in NAMES
        }
        assert (epochs["tf-net"], epochs["fno"]) == ({1}, {2})
        assert epochs["fno-monarch"] == {2, 2 * scale.in_its_time.get("B", 1)}
        beside = [(row[0].model, row[0].longer) for row in tables["rates-A"] if row[0].viscosity == "1e-4"]
        as_long = [("fno-monarch", scale.in_its_time[name]) for name in ("A", "U-Net") if scale.in_its_time]
        assert beside == [("fno", 1), ("fno-monarch", 1), *as_long, ("unet", 1)]
    assert paper.cases.PUBLISHED.keys() == {(m, v) for m in get_args(Kind) for v in paper.cases.SOLVERS}


def test_a_row_is_compared_with_the_fno_of_its_table(paper):
    scale = paper.cases.SCALES["small"]
    for rows in paper.cases.tables(scale).values():
        for case in (case for row in rows for case in row):
            fno = paper.report.fno_beside(case, rows)
            assert any(fno in row for row in rows)
            assert fno.model == "fno"
            assert (fno.viscosity, fno.seed, fno.modes) == (case.viscosity, case.seed, case.modes)
            assert case.longer / fno.longer in {1, *scale.in_its_time.values()} or case.model == "tf-net"


def test_trains_once_and_reports_what_is_done(paper, tmp_path, capsys):
    scale = paper.cases.SCALES["tiny"]
    paper.cases.data("1e-3", scale)
    chosen = {name: rows for name, rows in paper.cases.tables(scale).items() if name.startswith("protocol")}
    cases = [row[0] for name in chosen for row in chosen[name] if row[0].viscosity == "1e-3"]
    late = paper.table.run((cases[0], "tiny", 0.0))
    assert late is None  # the time was up before it began
    results = {case: paper.table.run((case, "tiny", float("inf"))) for case in cases}
    again = paper.table.run((cases[0], "tiny", 0.0))  # what is trained takes no time
    assert again == results[cases[0]]
    assert capsys.readouterr().out.count("rollout") == len(cases) + 1
    runs = {c: paper.report.Run(r, None, paper.report.curve("tiny", c)) for c, r in results.items()}
    paper.report.report("tiny", chosen, runs, 1)
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

    # another machine, which trained one of them: the others are kept, and the report is the same but for that
    first = cases[0]
    before = paper.report.kept("tiny")
    assert before.keys() == runs.keys()
    assert before[first] == replace(runs[first], result=before[first].result)
    paper.report.report("tiny", chosen, {**before, first: runs[first]}, 1, trained_here=1)
    again = (tmp_path / "paper_pde_tiny.md").read_text()
    assert "9 of them earlier" in again
    # only seconds are measured anew
    assert [row[9:] for row in cells(again)] == [row[9:] for row in cells(text)]
    assert all(float(row[8]) >= 0 for row in cells(again))


def cells(text):
    """Of the rows of all tables but the last."""
    lines = text.split("## Beyond")[0].splitlines()
    return [line.split(" | ") for line in lines if line.startswith("| 1e-")]


def test_seconds_are_steps_times_that_of_one(paper):
    scale = paper.cases.SCALES["tiny"]
    rows = paper.cases.tables(scale)
    first, other = rows["protocol-B"][0][0], rows["rates"][0][2]
    assert paper.steps.kind(first, "tiny") == paper.steps.kind(other, "tiny")
    assert paper.steps.kind(first, "tiny") != paper.steps.kind(rows["protocol-A"][0][0], "tiny")
    threads = torch.get_num_threads()
    times = paper.steps.milliseconds([first, other, rows["protocol-A"][0][0]], "tiny", rounds=1)
    assert len(times) == 2
    assert all(ms > 0 for ms in times.values())
    assert torch.get_num_threads() == threads
    # two trajectories of eleven windows in batches of two
    assert paper.steps.seconds(first, 3, "tiny", times) == pytest.approx(
        3 * 11 * times[paper.steps.kind(first, "tiny")] / 1e3
    )


def test_beyond_the_training(paper, tmp_path):
    scale = paper.cases.SCALES["tiny"]
    paper.cases.data("1e-3", scale)
    every = paper.cases.tables(scale)
    meant = [c for rows in every.values() for row in rows for c in row if paper.beyond.is_meant(c, scale)]
    assert {(c.model, c.viscosity, c.protocol, c.n_train) for c in meant} == {
        (model, "1e-3", "B", 2) for model in ("fno", "fno-monarch")
    }
    cases = [case for case in meant if case.seed == 0]
    results = {case: paper.table.run((case, "tiny", float("inf"))) for case in cases}
    further = {case: paper.beyond.go_beyond(case, "tiny") for case in cases}
    assert paper.beyond.go_beyond(cases[0], "tiny") == further[cases[0]]
    for case, beyond in further.items():
        # the same frames on the grid of the training, as a table of trainings has them
        assert beyond.grids["16"] == pytest.approx(results[case].rollout, rel=1e-4)
        assert beyond.frames[:11] == pytest.approx(results[case].rollout_per_frame, rel=1e-4)
        assert len(beyond.frames) == 13
        assert beyond.grids.keys() == {"64", "32", "16"}
    assert further[cases[0]] != further[cases[1]]
    runs = {c: paper.report.Run(r, further[c], paper.report.curve("tiny", c)) for c, r in results.items()}
    paper.report.report("tiny", every, runs, 1)
    assert {c: run.beyond for c, run in paper.report.kept("tiny").items()} == further
    section = (tmp_path / "paper_pde_tiny.md").read_text().split("## Beyond")[1]
    assert f"| FNO | 1 | {further[cases[0]].grids['64']:.4f} |" in section
    assert (tmp_path / "paper_pde_tiny_beyond.png").exists()


def test_twice_the_epochs_are_another_training(paper):
    short = paper.cases.tables(paper.cases.SCALES["small"])["rates"][0][0]
    long = paper.cases.tables(paper.cases.SCALES["small"])["time"][0][0]
    assert long == replace(short, longer=2)
    third = [case for row in paper.cases.tables(paper.cases.SCALES["small"])["time"] for case in row][9]
    assert str(third) == "fno-monarch-1e-3-B-n100-m16-s0-spectral3-transform0.3-longer3.5"
    assert paper.cases.configuration(third, "small").epochs == 70
    first, second = (paper.cases.configuration(case, "small") for case in (short, long))
    assert second == replace(first, epochs=2 * first.epochs, out=second.out)
    assert first.out != second.out


def test_as_many_steps_with_other_numbers_of_trajectories(paper):
    for name in ("small", "full"):
        scale = paper.cases.SCALES[name]
        for row in paper.cases.tables(scale)["data"]:
            config = paper.cases.configuration(row[0], name)
            assert config.epochs * config.n_train == scale.epochs["B"] * scale.n_train
