"""Run directories: made once, entered again with the same settings and data only."""

import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from monarch_sciml import __version__
from monarch_sciml.errors import InputError
from monarch_sciml.training import (
    check_device,
    check_run,
    create_run,
    is_finished,
    read_config,
    read_json,
    use_paths,
)
from monarch_sciml.training.run import write_json

DATA = {"grid": (16, 16), "standard deviation": "0.25"}


@dataclass(frozen=True)
class Config:
    out: Path
    data: Path = Path("data.npy")
    width: int = 4
    rate: float | None = None
    threads: int | None = None
    resume: bool = False


def test_directory_holds_the_configuration_and_the_versions(tmp_path):
    config = Config(tmp_path / "a" / "run")
    check_run(config.out, config, resume=False)
    assert not config.out.exists()  # checking writes nothing
    assert create_run(config.out, config, DATA) == config.out
    assert [file.name for file in config.out.iterdir()] == ["config.json"]
    saved = json.loads((config.out / "config.json").read_text())
    assert saved["config"] == {
        "out": str(config.out),
        "data": str(Path.cwd() / "data.npy"),  # holds in any directory
        "width": 4,
        "rate": None,
        "threads": None,
        "resume": False,
    }
    assert saved["data"] == {"grid": [16, 16], "standard deviation": "0.25"}
    assert saved["environment"]["monarch_sciml"] == __version__
    assert saved["environment"]["torch"] == torch.__version__
    assert read_config(config.out) == saved["config"]
    assert not is_finished(config.out)


def test_paths_begin_at_home_where_they_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = Config("~/run", Path("~") / "data.npy")  # type: ignore[arg-type]
    use_paths(config, "out", "data")
    assert (config.out, config.data) == (tmp_path / "run", tmp_path / "data.npy")
    nobody = Config(Path("~nobody of this name/run"))
    use_paths(nobody, "out")
    assert nobody.out == Path("~nobody of this name/run")  # as a shell leaves it


def test_empty_directory_is_welcome(tmp_path):
    config = Config(tmp_path)
    check_run(tmp_path, config, resume=False)
    create_run(tmp_path, config, DATA)
    assert read_config(tmp_path)["width"] == 4


def test_run_that_was_killed_while_it_began_is_none(tmp_path):
    (tmp_path / "config.json.partial").write_text("{")
    config = Config(tmp_path)
    check_run(tmp_path, config, resume=False)
    create_run(tmp_path, config, DATA)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_existing_run_is_entered_to_resume_only(tmp_path):
    config = Config(tmp_path / "run")
    create_run(config.out, config, DATA)
    before = (config.out / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"expected a new output directory; found a run in .*pass --resume"):
        check_run(config.out, config, resume=False)
    elsewhere = replace(config, resume=True, threads=3, data=Path("moved.npy"))
    check_run(config.out, elsewhere, resume=True)
    assert create_run(config.out, elsewhere, DATA) == config.out
    assert (config.out / "config.json").read_bytes() == before


def test_changed_settings_are_named(tmp_path):
    config = Config(tmp_path / "run")
    create_run(config.out, config, DATA)
    changed = replace(config, width=8, rate=0.5)
    with pytest.raises(
        InputError, match=r"settings of the run in .*width=4, rate=None; found width=8, rate=0.5"
    ):
        check_run(config.out, changed, resume=True)


def test_a_setting_that_is_new_had_its_default(tmp_path):
    config = Config(tmp_path / "run")
    create_run(config.out, config, DATA)
    saved = json.loads((config.out / "config.json").read_text())
    del saved["config"]["rate"]
    (config.out / "config.json").write_text(json.dumps(saved))
    check_run(config.out, config, resume=True)
    with pytest.raises(InputError, match=r"rate=None; found rate=0\.5"):
        check_run(config.out, replace(config, rate=0.5), resume=True)


def test_other_data_are_refused(tmp_path):
    config = Config(tmp_path / "run")
    create_run(config.out, config, DATA)
    with pytest.raises(InputError, match=r"the data of the run in .*0\.25.*; found .*0\.26.*; pass the same"):
        create_run(config.out, config, {**DATA, "standard deviation": "0.26"})


@pytest.mark.parametrize("resume", [False, True])
def test_directory_in_use_by_something_else(tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"a new or empty output directory; found .* in use; choose another"):
        check_run(tmp_path, Config(tmp_path), resume=resume)
    with pytest.raises(InputError, match="a new or empty output directory"):
        check_run(tmp_path / "thesis.tex", Config(tmp_path), resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    check_run(out, Config(out), resume=False)
    with pytest.raises(
        InputError, match=r"an output directory that can be written; found .*; choose another"
    ):
        create_run(out, Config(out), DATA)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"config": {', r"expected JSON in .*config.json; found .*; restore the file or train anew"),
        (b"\xff\xfe\x00", r"expected JSON in .*config.json"),
        (b"[" * 100_000, r"expected JSON in .*config.json"),
        (b"[1, 2]", r"expected a run directory .*; found a config.json of another kind"),
        (b'{"kind": "fno"}', r"expected a run directory .*; found a config.json of another kind"),
    ],
)
def test_damaged_configuration(tmp_path, content, match):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=match):
        check_run(tmp_path, Config(tmp_path), resume=True)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(InputError, match=r"expected a file config.json; found none in .*; check"):
        read_json(tmp_path / "config.json")


def test_interrupted_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})

    class Unprintable:
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "a.json", {"x": [1, 2, Unprintable()]})
    assert read_json(tmp_path / "a.json") == {"x": 1}


@pytest.mark.parametrize(("device", "recorded"), [("cpu", platform.machine()), ("auto", "a GPU")])
def test_a_run_records_the_device_it_is_trained_on(tmp_path, monkeypatch, device, recorded):
    @dataclass(frozen=True)
    class OnDevice(Config):
        device: str = "auto"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    create_run(tmp_path, OnDevice(tmp_path, device=device), DATA)
    assert read_json(tmp_path / "config.json")["environment"]["device"] == recorded


def test_missing_cuda_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device("cpu")
    check_device("auto")
    with pytest.raises(InputError, match=r"expected a CUDA device; found none .*; pass --device cpu"):
        check_device("cuda")
