"""Generated files: layout, resumption, reuse and refusals."""

import dataclasses
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import h5py
import numpy as np
import pytest
import torch

from monarch_sciml.errors import InputError
from monarch_sciml.pde.generation import LAYOUT, GenerateConfig, generate
from monarch_sciml.pde.navier_stokes import solve_navier_stokes

# the package exports the function under the name of its module
module = importlib.import_module("monarch_sciml.pde.generation")

CONFIG = GenerateConfig(
    samples=5, resolution=16, viscosity=1e-2, end_time=2.0, record_interval=0.5, seed=7, batch=2
)


def read(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(cast(h5py.Dataset, file["w"]))


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("complete") / "flow.h5", CONFIG, progress=False)


def test_layout(complete):
    with h5py.File(complete) as file:
        w, t = cast(h5py.Dataset, file["w"]), cast(h5py.Dataset, file["t"])
        assert (w.shape, w.dtype) == ((5, 5, 16, 16), np.float32)
        assert t.dtype == np.float64
        assert t[()].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
        assert dict(file.attrs) == {
            "layout": LAYOUT,
            "viscosity": 1e-2,
            "config": CONFIG.to_json(),
            "version": file.attrs["version"],
            "finished": 5,
        }
    assert GenerateConfig(**json.loads(complete.with_suffix(".json").read_text())) == CONFIG
    assert sorted(file.name for file in complete.parent.iterdir()) == ["flow.h5", "flow.json"]


def test_frames_solve_the_equation(complete):
    w = torch.from_numpy(read(complete))
    assert w.isfinite().all()
    assert len(w[:, 0].flatten(1).unique(dim=0)) == 5
    again = solve_navier_stokes(w[:, 0], CONFIG.viscosity, CONFIG.times)
    torch.testing.assert_close(again, w, rtol=0, atol=1e-5)


def test_initial_conditions_depend_on_seed_and_index_alone(complete, tmp_path):
    fewer = dataclasses.replace(CONFIG, samples=3, batch=3)
    first = read(generate(tmp_path / "fewer.h5", fewer, progress=False))
    assert np.array_equal(first[:, 0], read(complete)[:3, 0])
    other = read(generate(tmp_path / "other.h5", dataclasses.replace(CONFIG, seed=8), progress=False))
    assert not np.isclose(other[:, 0], read(complete)[:, 0]).all((1, 2)).any()


def test_scale_and_forcing(complete, tmp_path):
    config = dataclasses.replace(CONFIG, samples=2, scale=0.5, forcing=False)
    w = read(generate(tmp_path / "flow.h5", config, progress=False))
    np.testing.assert_allclose(w[:, 0], 0.5 * read(complete)[:2, 0], rtol=1e-6)
    assert (np.abs(w[:, -1]).max((1, 2)) < np.abs(w[:, 0]).max((1, 2))).all()  # nothing drives it


def test_finer_solver_is_subsampled(tmp_path):
    fine = generate(tmp_path / "fine.h5", dataclasses.replace(CONFIG, resolution=32), progress=False)
    both = dataclasses.replace(CONFIG, solver_resolution=32)
    coarse = generate(tmp_path / "coarse.h5", both, progress=False)
    assert np.array_equal(read(coarse), read(fine)[..., ::2, ::2])


def test_killed_run_resumes_to_the_same_file(complete, tmp_path):
    path = tmp_path / "flow.h5"
    script = f"""
import importlib, os, signal
module = importlib.import_module("monarch_sciml.pde.generation")
simulate = module._simulate
def dies(config, samples, device):
    if samples.start == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return simulate(config, samples, device)
module._simulate = dies
module.generate({str(path)!r}, module.GenerateConfig(**{dataclasses.asdict(CONFIG)!r}), progress=False)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert run.returncode == -signal.SIGKILL
    assert not path.exists()
    with h5py.File(tmp_path / "flow.h5.partial") as file:
        assert file.attrs["finished"] == 4
    generate(path, CONFIG, progress=False)
    assert path.read_bytes() == complete.read_bytes()


@pytest.mark.parametrize("start", [0, 2])
def test_interrupted_batch_is_computed_again(complete, tmp_path, monkeypatch, start):
    path, simulate, solved = tmp_path / "flow.h5", module._simulate, []

    def interrupted(config, samples, device):
        if samples.start == start:
            raise KeyboardInterrupt
        return simulate(config, samples, device)

    def counted(config, samples, device):
        solved.append(samples.start)
        return simulate(config, samples, device)

    monkeypatch.setattr(module, "_simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(path, CONFIG, progress=False)
    monkeypatch.setattr(module, "_simulate", counted)
    generate(path, CONFIG, progress=False)
    assert solved == list(range(start, 5, 2))
    assert path.read_bytes() == complete.read_bytes()


def test_unreadable_partial_file_starts_over(complete, tmp_path):
    (tmp_path / "flow.h5.partial").write_bytes(complete.read_bytes()[:1000])
    path = generate(tmp_path / "flow.h5", CONFIG, progress=False)
    assert path.read_bytes() == complete.read_bytes()


def test_partial_file_without_its_count_starts_over(complete, tmp_path):
    with h5py.File(tmp_path / "flow.h5.partial", "w") as file:
        file["t"] = [0.0]
    path = generate(tmp_path / "flow.h5", CONFIG, progress=False)
    assert path.read_bytes() == complete.read_bytes()


def test_complete_file_is_reused(complete, monkeypatch):
    monkeypatch.setattr(module, "_simulate", None)
    before = complete.stat().st_mtime_ns
    assert generate(complete, CONFIG, progress=False) == complete
    assert complete.stat().st_mtime_ns == before


def test_the_same_numbers_written_otherwise_are_the_same(complete, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_simulate", None)
    path = tmp_path / "flow.h5"
    path.write_bytes(complete.read_bytes())
    with h5py.File(path, "r+") as file:
        text = file.attrs["config"]
        file.attrs["config"] = text.replace(f'"seed": {CONFIG.seed}', f'"seed": {CONFIG.seed}.0')
        assert file.attrs["config"] != text
    assert generate(path, CONFIG, progress=False) == path


def test_other_configuration_is_refused(complete, tmp_path):
    other = dataclasses.replace(CONFIG, viscosity=1e-3)
    with pytest.raises(InputError, match=r"flow.h5 made with .*0\.001.* found .*0\.01.*another output name"):
        generate(complete, other, progress=False)
    partial = tmp_path / "flow.h5.partial"
    partial.write_bytes(complete.read_bytes())
    with pytest.raises(InputError, match=r"flow.h5.partial made with .*0\.001.* found .*0\.01"):
        generate(tmp_path / "flow.h5", other, progress=False)
    assert partial.read_bytes() == complete.read_bytes()


def test_file_of_another_kind_is_refused(tmp_path):
    with h5py.File(tmp_path / "flow.h5", "w") as file:
        file["tensor"] = [0.0]
    with pytest.raises(InputError, match="found no configuration"):
        generate(tmp_path / "flow.h5", CONFIG, progress=False)
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(InputError, match="expected a path that can be read and written"):
        generate(tmp_path / "text.h5", CONFIG, progress=False)


def test_second_writer_is_refused(tmp_path):
    partial = tmp_path / "flow.h5.partial"
    with h5py.File(partial, "w") as file:
        file["t"] = [0.0]
    with open(partial, "r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"flow.h5.partial to be free; found that another process"):
            generate(tmp_path / "flow.h5", CONFIG, progress=False)


def test_unusable_paths_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"expected a path that can be read and written.* choose another"):
        generate(tmp_path / "file" / "flow.h5", CONFIG, progress=False)
    with pytest.raises(InputError, match=r"expected a file name ending in \.h5 or \.hdf5; found flow\.json"):
        generate(tmp_path / "flow.json", CONFIG, progress=False)


def test_full_disk_is_noticed_before_the_work(tmp_path):
    config = dataclasses.replace(CONFIG, samples=10**15)
    with pytest.raises(InputError, match=r"with room for .* GB; found .*GB free.*; free the disk"):
        generate(tmp_path / "flow.h5", config, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_failing_write_leaves_no_file_under_the_final_name(tmp_path, monkeypatch):
    modify = h5py.AttributeManager.modify

    def full(*arguments):
        modify(*arguments)
        raise OSError("file write failed")

    monkeypatch.setattr(h5py.AttributeManager, "modify", full)
    with pytest.raises(InputError, match=r"found file write failed; free the disk"):
        generate(tmp_path / "flow.h5", CONFIG, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["flow.h5.partial"]


def test_progress_is_shown(tmp_path, capsys):
    generate(tmp_path / "flow.h5", dataclasses.replace(CONFIG, samples=2, end_time=0.5))
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"end_time": 2.2}, "expected an end_time that is a multiple"),
        ({"record_interval": 0.0}, "expected an end_time that is a multiple"),
        ({"end_time": float("inf")}, "expected an end_time that is a multiple"),
        ({"viscosity": float("nan")}, "finite numbers .*viscosity=nan"),
        ({"scale": float("inf")}, "finite numbers .*scale=inf"),
        ({"samples": 0}, "samples, batch and resolution ≥ 1"),
        ({"viscosity": -1.0}, "seed and viscosity ≥ 0"),
        ({"solver_resolution": 24}, "solver_resolution .*that is a multiple of resolution; found .*=24"),
        ({"solver_resolution": -16}, "solver_resolution of 4 to .*; found .*solver_resolution=-16"),
        ({"solver_resolution": 0}, "solver_resolution of 4 to .*; found .*solver_resolution=0"),
        ({"resolution": 2}, "of 4 to .*, by default the resolution, .*; found .*resolution=2"),
    ],
)
def test_wrong_settings_are_named(changes, match):
    with pytest.raises(InputError, match=match):
        dataclasses.replace(CONFIG, **changes)


# ------------------------------------------------------------------------------------------ several processes


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, path: Path) -> None:
    """What process ``rank`` of ``size`` does."""
    with monkeypatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(size))
        assert generate(path, CONFIG, progress=False) == path


@pytest.fixture
def solved(monkeypatch) -> list[int]:
    """First samples of the batches that are simulated during the test."""
    simulate, starts = module._simulate, []

    def counted(config, samples, device):
        starts.append(samples.start)
        return simulate(config, samples, device)

    monkeypatch.setattr(module, "_simulate", counted)
    return starts


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0, 1), (4, 3, 2, 1, 0)])
def test_processes_share_the_batches_and_the_last_one_writes_the_file(
    complete, tmp_path, monkeypatch, solved, order
):
    path = tmp_path / "flow.h5"
    for rank in order:
        waiting = {*range(0, 5, 2)} - {*solved}
        assert path.exists() == (not waiting)
        as_rank(monkeypatch, rank, len(order), path)
    assert sorted(solved) == [0, 2, 4]
    assert path.read_bytes() == complete.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["flow.h5", "flow.json"]


def test_what_is_there_is_used_by_any_number_of_processes(complete, tmp_path, monkeypatch, solved):
    path = tmp_path / "flow.h5"
    as_rank(monkeypatch, 1, 3, path)  # the others die
    assert [file.name for file in tmp_path.iterdir()] == ["flow.h5.partial.000002"]
    as_rank(monkeypatch, 0, 2, path)
    assert sorted(solved) == [0, 2, 4]
    assert path.read_bytes() == complete.read_bytes()


def test_one_process_continues_what_several_began(complete, tmp_path, monkeypatch, solved):
    path = tmp_path / "flow.h5"
    as_rank(monkeypatch, 1, 3, path)
    generate(path, CONFIG, progress=False)
    assert solved == [2, 0, 4]
    assert path.read_bytes() == complete.read_bytes()
    assert len([*tmp_path.iterdir()]) == 2


def test_several_continue_what_one_process_began(complete, tmp_path, monkeypatch, solved):
    path = tmp_path / "flow.h5"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_read", None)
        original = module._simulate

        def interrupted(config, samples, device):
            if samples.start == 2:
                raise KeyboardInterrupt
            return original(config, samples, device)

        patch.setattr(module, "_simulate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(path, CONFIG, progress=False)
    for rank in range(2):
        as_rank(monkeypatch, rank, 2, path)
    assert solved == [0, 4, 2]  # the first batch is in the unfinished file already
    assert path.read_bytes() == complete.read_bytes()


def test_parts_of_another_configuration_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "flow.h5"
    as_rank(monkeypatch, 1, 3, path)
    with pytest.raises(InputError, match=r"flow.h5.partial.000002 made with .*0\.001.* found .*0\.01"):
        generate(path, dataclasses.replace(CONFIG, viscosity=1e-3), progress=False)


def test_two_that_finish_at_once_do_not_disturb_each_other(complete, tmp_path, monkeypatch):
    """Both see all parts: one writes the file, the other finds it locked and returns."""
    path, fill = tmp_path / "flow.h5", module._fill
    as_rank(monkeypatch, 1, 2, path)

    def meanwhile(file, *arguments):
        monkeypatch.setattr(module, "_fill", fill)
        as_rank(monkeypatch, 1, 2, path)
        assert not path.exists()
        fill(file, *arguments)

    monkeypatch.setattr(module, "_fill", meanwhile)
    as_rank(monkeypatch, 0, 2, path)
    assert path.read_bytes() == complete.read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_file_that_another_process_finishes_meanwhile_is_not_made_again(
    complete, tmp_path, monkeypatch, solved, processes
):
    """Between a look for the file and the lock on its beginning."""
    path, opened = tmp_path / "flow.h5", module._open_partial

    def meanwhile(*arguments):
        monkeypatch.setattr(module, "_open_partial", opened)
        path.write_bytes(complete.read_bytes())
        return opened(*arguments)

    monkeypatch.setattr(module, "_open_partial", meanwhile)
    if processes == 1:
        generate(path, CONFIG, progress=False)
    else:
        monkeypatch.setattr(module, "_missing", lambda *_: [])
        as_rank(monkeypatch, 0, processes, path)
    assert solved == []
    assert [file.name for file in tmp_path.iterdir()] == ["flow.h5"]
    assert path.read_bytes() == complete.read_bytes()


def test_several_processes_need_room_twice(tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda _: usage._replace(free=1.5 * module._bytes(CONFIG))
    )
    with pytest.raises(InputError, match="free the disk"):
        as_rank(monkeypatch, 0, 2, tmp_path / "flow.h5")
    generate(tmp_path / "flow.h5", CONFIG, progress=False)
