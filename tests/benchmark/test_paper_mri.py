"""The script of the MRI tables: nothing missing, nothing done twice, a report of what there is."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import mean

import pytest

from monarch_sciml.mri import recipe, slices
from monarch_sciml.mri.simulation import SimulateConfig
from monarch_sciml.training import read_json, write_json

FOLDER = Path(__file__).parents[2] / "benchmarks" / "paper_mri"
SCRIPTS = ("table", "answers", "report")


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """The script and its parts, with volumes and networks of seconds and a place of their own."""
    monkeypatch.syspath_prepend(FOLDER)
    main, mri, report = map(import_module, SCRIPTS)
    tiny = {"slices": 1, "shape": (48, 48)}
    monkeypatch.setattr(main, "SIMULATED", SimulateConfig(volumes=3, coils=(4,), **tiny))
    monkeypatch.setattr(main, "ROBUST", replace(main.ROBUST, volumes=2, **tiny))
    monkeypatch.setattr(mri, "HELD_OUT", 2)
    monkeypatch.setattr(mri, "DATA", tmp_path / "data")
    monkeypatch.setattr(mri, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(recipe, "POISSON_DISCS", 4)
    whole = mri.configuration
    small = {"n_train": 1, "n_test": 1, "epochs": 1, "channels": 2, "pools": 1}

    def configuration(case):
        config = whole(case)
        return replace(config, **small, cascades=config.cascades or 2)

    monkeypatch.setattr(mri, "configuration", configuration)
    yield main, mri, report
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def test_every_method_at_every_acceleration(paper):
    main, mri, report = paper
    held_out = main.held_out()
    assert [setting.rate for setting in held_out] == [2, 4, 6, 8]
    results = report.Results(held_out, main.robustness(), main.scans([held_out[0].files[0]]), 1)
    asked = [question for group in main.asked(results) for question in group]
    assert len(asked) == len(set(asked)) == len({question.answer for question in asked})
    assert {question.method for question in asked if not isinstance(question.method, str)} == set(
        mri.TRAININGS
    )
    issue = {
        "mSENSE, one step",
        "zero-filled",
        "CG-SENSE",
        "L1-wavelet",
        "U-Net",
        "mSENSE",
        "VarNet",
        "VarNet, Monarch",
    }
    every = [*held_out, *results.robust, *(s for settings in results.scans.values() for s in settings)]
    for setting in every:
        names = {name: methods for name, methods in mri.methods(setting).items() if name in issue}
        assert names.keys() == issue
        assert len(names["VarNet"]) == len(names["VarNet, Monarch"]) == 3
        for methods in names.values():
            assert all(report.Question(method, setting) in asked for method in methods)
    for rate in (2.0, 4.0):
        for model in ("msense", "unet"):
            few = {
                (case.volumes, case.cascades)
                for case in mri.TRAININGS
                if (case.model, case.accelerations) == (model, (rate,))
            }
            steps = {"msense": (1, None), "unet": (None,)}[model]  # of mSENSE the paper's and our default
            assert few == {(n, s) for n in (1, 2, 3, 5) for s in steps}


def test_robustness_changes_one_thing_at_a_time(paper):
    main, _, _ = paper
    first, *others = main.robustness()
    assert {setting.rate for setting in [first, *others]} == {4.0}
    for setting in others:
        assert (setting.files != first.files) != (setting.sampling != first.sampling)
    masks = {setting.sampling.mask for setting in [first, *others]}
    assert masks == {"poisson", "random", "equispaced-fraction"}
    assert len({setting.files for setting in others} - {first.files}) == len(main.COILS) + len(main.NOISE)


def test_trains_once_answers_once_and_reports_what_there_is(paper, tmp_path, monkeypatch):
    main, mri, report = paper
    results = report.Results(main.held_out()[:2], main.robustness()[1:2], {}, 1)
    fft, monarch = (mri.UNROLLED[model][0] for model in ("varnet", "varnet-monarch"))
    trained = [mri.one_step(4.0), fft, monarch]
    assert not mri.run(trained[0], stop=0.0)  # the time was up before it began
    assert all(mri.run(case, float("inf")) for case in trained)
    tables = {case: (mri.RUNS / str(case) / "metrics.csv").stat().st_mtime_ns for case in trained}
    assert all(mri.run(case, 0.0) for case in trained)  # what is trained takes no time
    assert tables == {case: (mri.RUNS / str(case) / "metrics.csv").stat().st_mtime_ns for case in trained}

    estimated = []
    known = slices.estimate_maps
    monkeypatch.setattr(slices, "estimate_maps", lambda *args: estimated.append(1) or known(*args))
    for group in main.asked(results):
        results.found.update(mri.answers(group))
    assert len(estimated) == 2 * len(main.asked(results))  # one for each slice of a setting, not each method
    # answers are not computed again, and networks that are not trained have none
    assert {q.method for q in results.found if not isinstance(q.method, str)} == set(trained)
    setting = results.held_out[1]
    kept = report.Question(trained[0], setting)
    content = read_json(kept.answer)
    content["volumes"] = [{**volume, "psnr": volume["psnr"] + 10} for volume in content["volumes"]]
    write_json(kept.answer, content)
    results.found.update(mri.answers([kept]))
    assert results.found[kept] == content

    report.report(results)
    text = (tmp_path / "paper_mri.md").read_text()
    assert f"3 of {len(mri.TRAININGS)} trainings are done" in text
    zero, ours = (results.found[report.Question(m, setting)]["volumes"] for m in ("zero-filled", trained[0]))
    gain = mean(b["psnr"] - a["psnr"] for a, b in zip(zero, ours, strict=True))
    first = text.split("| acceleration |")[1].splitlines()
    missing, line = (next(row for row in first if row.startswith(f"| {rate}× |")) for rate in (2, 4))
    assert missing.split("|")[2].strip() == ""
    assert line.split("|")[2].strip().startswith(f"{gain:+.2f} ± ")
    line = next(row for row in text.split("| acceleration |")[2].splitlines() if row.startswith("| 4× |"))
    errors = [
        mean(volume["nmse"] for volume in results.found[report.Question(case, setting)]["volumes"])
        for case in (fft, monarch)
    ]
    assert f"| {100 * (errors[1] / errors[0] - 1):+.1f} % |" in line
    # two of three seeds are missing: no mean over seeds, neither in the table nor in the plot
    details = text.split("## 4×")[1].split("##")[0]
    names = [row.split("|")[1].strip() for row in details.splitlines() if row.startswith("| ")][2:]
    untrained = ["zero-filled", "density-compensated", "SENSE, untrained", "CG-SENSE", "L1-wavelet"]
    assert sorted(names) == sorted([*untrained, "mSENSE, one step"])
    assert len(json.loads((tmp_path / "paper_mri.json").read_text())["answers"]) == len(results.found)
    for picture in ("paper_mri.png", "paper_mri_slice.png", "paper_mri_transform.png"):
        assert (tmp_path / picture).stat().st_size > 0
