"""Exported models and run directories, damaged in every way: they load whole and finite, or are refused."""

import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from files import DAMAGE, PLACES, place
from hypothesis import strategies as st
from wild import Trap, answer, damage, fuzz, guarded

from monarch_sciml.errors import InputError
from monarch_sciml.mri import models as mri
from monarch_sciml.pde import models as pde
from monarch_sciml.training import read_config, save_model

FOLDERS = ["fno-monarch", "varnet-monarch"]
LOADERS: dict[str, Any] = {
    "fno-monarch": pde.FramePredictor.from_pretrained,
    "varnet-monarch": mri.SliceReconstructor.from_pretrained,
}
FILES = ["config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    field = pde.ModelConfig("fno-monarch", (8, 6), channels=1, n_in=1, modes=4, width=2, layers=1)
    save_model(folder / "fno-monarch", field.build(), asdict(field), "")
    image = mri.ModelConfig("varnet-monarch", (8, 6), cascades=1, channels=2, pools=1)
    save_model(folder / "varnet-monarch", image.build(), asdict(image), "")
    return {name: folder / name for name in FOLDERS}


def load(name: str, path: Path) -> torch.nn.Module:
    model = LOADERS[name](path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # neuraloperator's own
        assert all(p.isfinite().all() for p in model.state_dict().values() if isinstance(p, torch.Tensor))
    return model


@pytest.mark.parametrize("name", FOLDERS)
def test_whole_exports(name: str, exported: dict[str, Path]) -> None:
    assert isinstance(load(name, exported[name]), torch.nn.Module)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", FOLDERS)
@fuzz(30, **DAMAGE)
def test_damaged_exports(
    name: str,
    file: str,
    exported: dict[str, Path],
    tmp_path: Path,
    kind: str,
    at: float,
    count: int,
    fill: bytes,
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(exported[name], copy, dirs_exist_ok=True)
    (copy / file).write_bytes(damage((copy / file).read_bytes(), kind, at, count, fill))
    answer(load, name, copy)


DEPTHS = {"layers", "cascades", "pools"}  # which take for ever to build
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    3,
    7,
    10**12,
    10**400,
    1.5,
    float("nan"),
    "",
    "fno",
    "espirit",
    [],
    [4],
]
VALUES += [[8, 6], [0, 0], [-8, 6], [10**9, 10**9], [8, 6, 4], ["8", "6"], [float("nan"), 6], {}, {"a": 1}]


@pytest.mark.parametrize("name", FOLDERS)
@fuzz(
    80,
    number=st.integers(0, 12),
    value=st.sampled_from(VALUES),
    action=st.sampled_from(["set", "set", "drop", "add"]),
)
def test_other_configurations(
    name: str, exported: dict[str, Path], tmp_path: Path, number: int, value: Any, action: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(exported[name], copy, dirs_exist_ok=True)
    content = json.loads((copy / "config.json").read_text())
    key = sorted(content)[number % len(content)]
    if key in DEPTHS and action == "set" and isinstance(value, int) and value > 10**6:
        return
    if action == "drop":
        del content[key]
    else:
        content[key if action == "set" else "another"] = value
    (copy / "config.json").write_text(json.dumps(content))
    answer(load, name, copy)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", '"a"', "{}", "[" * 100, "{" * 100, "\udcff", '{"a": NaN}']
)
@pytest.mark.parametrize("name", FOLDERS)
def test_other_json(name: str, text: str, exported: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(exported[name], copy)
    (copy / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with guarded():
        assert isinstance(answer(load, name, copy), InputError)
        assert isinstance(answer(read_config, copy), InputError)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", sorted({*PLACES} - {"root", "current", "device", "long", "user", "NUL"}))
@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_no_file(name: str, kind: str, file: str, exported: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(exported[name], copy)
    (copy / file).unlink()
    place(copy, kind, "")
    (copy / kind).rename(copy / file) if kind not in ("nothing", "loop") else None
    with guarded():
        assert isinstance(answer(load, name, copy), InputError)


@pytest.mark.parametrize("name", FOLDERS)
def test_no_payload_runs(name: str, exported: dict[str, Path], tmp_path: Path) -> None:
    copy, target = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(exported[name], copy)
    torch.save({"state_dict": Trap(target)}, copy / "model.safetensors")
    assert isinstance(answer(load, name, copy), InputError)
    assert not target.exists()
