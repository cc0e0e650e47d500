"""The transformer benchmarks: published parameter counts, and each script at tiny settings."""

import json
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[2] / "benchmarks" / "transformers"
SCRIPTS = ("models", "parameters", "report", "step_time", "tasks", "three_ways")


@pytest.fixture
def script(monkeypatch):
    """Import one of the scripts, which find each other in their own folder; forget them afterwards."""
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    yield import_module
    torch.set_num_threads(threads)
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("index", range(8))
def test_parameters_are_those_of_the_paper(script, index):
    models = script("models").MODELS
    assert len(models) == 8
    count = script("parameters").count(models[index])
    assert count.dense == pytest.approx(count.paper_dense, rel=0.005)
    assert abs(count.difference) < (2.2 if count.reason else 1)
    assert count.linear < 0.45


def test_mixer_shapes(script):
    mixer = script("models").MLPMixer(32, 2, 16, 64)
    assert mixer(torch.randn(2, 3, 224, 224)).shape == (2, 1000)


def test_step_time(script, monkeypatch, tmp_path):
    models, step_time = script("models"), script("step_time")
    small = replace(
        models.MODELS[4],
        name="GPT-2",
        build=lambda layers: models.gpt2(64, layers, 2, vocabulary=100, positions=16),
        input=("tokens", 1, 16, 100),
    )
    timing = step_time.measure(small, repeats=1)
    assert timing.ratio > 0
    assert timing.work == pytest.approx(0.375)
    assert 0 < timing.linear_share < 1
    for shares in timing.parts.values():
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares[kind] for kind in ("linear layers", "head", "AdamW", "attention", "layer norm")) > 0
    monkeypatch.setattr(step_time, "RESULTS", tmp_path)
    monkeypatch.setattr(step_time, "MODELS", [small])
    step_time.write([timing], "", 1)
    assert "| GPT-2 | 1 × 16 tokens |" in (tmp_path / "transformers_step_time.md").read_text()


@pytest.fixture
def plan(script, tmp_path, monkeypatch):
    three_ways = script("three_ways")
    monkeypatch.setattr(three_ways, "EVALUATIONS", 5)
    quick = three_ways.quick(tmp_path)
    short = []
    for task in quick.tasks:
        inputs, targets = task.held_out()[0]
        few = [(inputs[:16], targets[:16])]
        short.append(replace(task, steps=5, held_out=partial(list, few)))
    return replace(quick, tasks=short)


def test_three_ways_and_their_report(script, plan):
    three_ways, report = script("three_ways"), script("report")
    rows = []
    for task in plan.tasks:
        rate = task.rates[0]
        for way, rates in (("dense", (rate, rate)), ("Monarch", (rate,)), ("few Monarch", (rate,))):
            rows += three_ways.run((way, task, 0, rates), plan.runs)
    tries = [{**row, "way": f"short {kind}"} for row in rows[::5] for kind in ("dense", "Monarch")]
    report.write_report(rows, tries, plan.results)
    written = json.loads((plan.results / "transformers_training.json").read_text())
    assert len(written["runs"]) == 5 * len(plan.tasks)
    assert (plan.results / "transformers_training.png").stat().st_size > 10_000
    by_way = {row["way"]: row for row in rows[:5]}
    assert by_way["dense"]["parameters"] == by_way["reverse"]["parameters"]
    assert (
        by_way["Monarch"]["parameters"] == by_way["projected"]["parameters"] < by_way["dense"]["parameters"]
    )
    # finished runs are read, not repeated
    assert three_ways.run(("few Monarch", plan.tasks[0], 0, (plan.tasks[0].rates[0],)), plan.runs) == [
        rows[4]
    ]


def test_reverse_is_the_monarch_run_until_the_switch(script, plan):
    three_ways = script("three_ways")
    monarch, reverse = three_ways.monarch(plan.tasks[0], 0, 1e-3)
    switch = plan.tasks[0].switch * plan.tasks[0].steps
    before = [p for p in monarch["curve"] if p["step"] <= switch]
    assert before
    assert reverse["curve"][: len(before)] == before
    assert reverse["curve"][-1]["step"] == monarch["curve"][-1]["step"] == plan.tasks[0].steps


def test_more_steps_where_monarch_needs_them(script, plan):
    task = replace(plan.tasks[0], longer=1.6)
    rows = script("three_ways").WAYS["longer Monarch"](task, 0, 1e-3)
    assert [(row["way"], row["steps"]) for row in rows] == [("longer Monarch", 8), ("longer reverse", 8)]


def test_time_to_a_loss_is_interpolated(script):
    points = [(1.0, 4.0), (2.0, 2.0), (3.0, 1.0)]
    run = {"curve": [{"seconds": s, "loss": loss} for s, loss in points]}
    reached = script("report").reached
    assert [reached(run, loss) for loss in (4, 3, 1, 0.5)] == [1, 1.5, 3, float("inf")]


def test_digits_move_each_on_its_own(script):
    tasks = script("tasks")
    images, labels = tasks.digits()
    x, y = tasks.draw_digits(torch.Generator().manual_seed(0))
    assert x.shape == (128, 1, 8, 8)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    shifts = set()
    for image, label in zip(x, y, strict=True):
        found = [
            (i, j)
            for i in range(3)
            for j in range(3)
            if labels[(padded[:, :, i : i + 8, j : j + 8] == image).all((1, 2, 3))].eq(label).any()
        ]
        assert found
        shifts |= set(found)
    assert len(shifts) == 9


def test_masked_and_next_bytes(script):
    tasks = script("tasks")
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 256, (8, 129), generator=generator)
    inputs, targets = tasks.next_byte(x, generator)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    inputs, targets = tasks.masked(x, generator)
    hidden = targets != -100
    assert torch.equal(inputs == tasks.MASK, hidden)
    assert torch.equal(torch.where(hidden, targets, inputs), x[:, :-1])
    assert 0.1 < hidden.double().mean() < 0.2
    training, held_out, _ = tasks.source_text()
    assert min(training.min(), held_out.min()) > tasks.MASK
