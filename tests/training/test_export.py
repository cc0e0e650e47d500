"""Exported models: the same function after a round trip, and nothing that executes."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from monarch_sciml.errors import InputError
from monarch_sciml.training import load_weights, read_json, save_model


class Net(nn.Module):
    """Real, complex and integer state, one tensor of it not contiguous."""

    def __init__(self, n: int = 3):
        super().__init__()
        self.a = nn.Parameter(torch.randn(n, 5).mT)
        self.z = nn.Parameter(torch.randn(n, 2, dtype=torch.complex64))
        self.register_buffer("count", torch.tensor(7))


class Malice:
    """Unpickling it makes a directory."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


FILES = ["README.md", "config.json", "model.safetensors"]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_round_trip_is_bitwise(tmp_path):
    model, other = Net(), Net()
    assert save_model(tmp_path / "model", model, {"n": 3}, "a card, ν") == tmp_path / "model"
    assert names(tmp_path / "model") == FILES
    assert read_json(tmp_path / "model" / "config.json") == {"n": 3}
    assert (tmp_path / "model" / "README.md").read_text(encoding="utf-8") == "a card, ν"
    assert load_weights(tmp_path / "model", other) is other
    for name, tensor in model.state_dict().items():
        assert other.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(other.state_dict()[name], tensor)
    modes = {file.stat().st_mode for file in (tmp_path / "model").iterdir()}
    assert len(modes) == 1  # who may read one of them may read all


def test_export_replaces_an_older_one_and_nothing_else(tmp_path):
    first, second = Net(), Net()
    save_model(tmp_path, first, {"n": 3}, "old")
    (tmp_path / "mine.txt").write_text("mine")
    save_model(tmp_path, second, {"n": 3}, "new")
    assert torch.equal(load_weights(tmp_path, Net()).z, second.z)  # type: ignore[arg-type]
    assert (tmp_path / "README.md").read_text() == "new"
    assert names(tmp_path) == [*FILES[:2], "mine.txt", FILES[2]]


class Killed(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("renamed", range(4))
def test_a_kill_leaves_the_old_model_or_none(tmp_path, monkeypatch, renamed):
    """Between any two of the renames: never new settings with old weights, nor a part of a model."""
    old, new = Net(), Net()
    save_model(tmp_path, old, {"n": "old"}, "old")
    replace, done = os.replace, []

    def replace_or_die(source, target):
        if len(done) == renamed:
            raise Killed
        replace(source, target)
        done.append(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        if renamed < 3:
            with pytest.raises(Killed):
                save_model(tmp_path, new, {"n": "new"}, "new")
            assert not (tmp_path / "config.json").exists()
        else:
            save_model(tmp_path, new, {"n": "new"}, "new")
    save_model(tmp_path, new, {"n": "new"}, "new")  # what was left behind is not in the way
    assert names(tmp_path) == FILES
    assert torch.equal(load_weights(tmp_path, Net()).z, new.z)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_fails_while_writing_leaves_the_old_model(tmp_path, monkeypatch, error):
    old = Net()
    save_model(tmp_path, old, {"n": 3}, "old")

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr("monarch_sciml.training.export.save_file", fails)
    expected = pytest.raises(type(error))
    if isinstance(error, OSError):
        expected = pytest.raises(InputError, match=r"can be written, .*; found .*No space left.*; free some")
    with expected:
        save_model(tmp_path, Net(), {"n": 4}, "new")
    assert names(tmp_path) == FILES
    assert read_json(tmp_path / "config.json") == {"n": 3}
    assert torch.equal(load_weights(tmp_path, Net()).z, old.z)  # type: ignore[arg-type]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match=r"a folder for the model that can be written, .*model; found"):
        save_model(tmp_path / "model", Net(), {}, "")
    assert (tmp_path / "model").read_text() == "mine"


def test_missing_and_damaged_weights(tmp_path):
    path = save_model(tmp_path / "model", Net(), {}, "")
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (b"", content[:20], content[:-1], b"\0" * len(content)):
        weights.write_bytes(damaged)
        with pytest.raises(
            InputError, match=r"expected a safetensors file .*model\.safetensors; found .*again"
        ):
            load_weights(path, Net())
    weights.unlink()
    with pytest.raises(
        InputError, match=r"expected exported weights .*; found no such file; train to the end"
    ):
        load_weights(path, Net())


def test_weights_of_another_model(tmp_path):
    path = save_model(tmp_path / "model", Net(), {}, "")
    with pytest.raises(
        InputError, match=r"weights that fit .*; found .*size mismatch for a.*; keep"
    ) as error:
        load_weights(path, Net(4))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"weights that fit .*; found .*Missing key.*weight"):
        load_weights(path, nn.Linear(2, 2))


def rewrite(path: Path, change) -> None:
    """Change tensors of an exported model."""
    weights = load_file(path / "model.safetensors")
    save_file(weights | change(weights), path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda w: {"a": w["a"].to(torch.complex64)}, r"torch.float32 for a in .*; found torch.complex64"),
        (lambda w: {"a": w["a"].int()}, r"torch.float32 for a in .*; found torch.int32; keep"),
        (lambda w: {"z": w["z"].real.clone()}, r"torch.complex64 for z in .*; found torch.float32; keep"),
        (lambda w: {"count": w["count"].float()}, r"torch.int64 for count in .*; found torch.float32"),
        (lambda w: {"a": w["a"].double() * 1e300}, r"finite weights in .*; found .* in a as torch.float32"),
        (lambda w: {"z": w["z"] * torch.nan}, r"finite weights in .*; found NaN .* in z as torch.complex64"),
    ],
)
def test_weights_of_another_kind_or_out_of_range(tmp_path, change, found):
    path = save_model(tmp_path, Net(), {}, "")
    rewrite(path, change)
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=found):
        load_weights(path, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_another_precision_are_converted(tmp_path, dtype):
    path = save_model(tmp_path, model := Net(), {}, "")
    rewrite(path, lambda weights: {"a": weights["a"].to(dtype)})
    assert torch.equal(load_weights(path, Net()).a, model.a.to(dtype).float())  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [0, 2], ids=["tied", "overlapping"])
def test_tensors_that_share_memory_are_named(tmp_path, start):
    old, shared = Net(), nn.Module()
    save_model(tmp_path, old, {"n": 3}, "old")
    memory = torch.randn(8)
    shared.register_buffer("u", memory[:4])
    shared.register_buffer("v", memory[start : start + 4])
    with pytest.raises(InputError, match=r"without common memory; found .*'[uv]', '[uv]'.*; clone") as error:
        save_model(tmp_path, shared, {}, "new")
    assert "\n" not in str(error.value)
    assert names(tmp_path) == FILES
    assert torch.equal(load_weights(tmp_path, Net()).z, old.z)  # type: ignore[arg-type]


def test_pickles_are_refused_and_not_executed(tmp_path):
    path = save_model(tmp_path / "model", Net(), {}, "")
    for protocol in (0, 2, 5):
        (path / "model.safetensors").write_bytes(pickle.dumps(Malice(tmp_path / "owned"), protocol))
        with pytest.raises(InputError, match="expected a safetensors file"):
            load_weights(path, Net())
    torch.save({"a": Malice(tmp_path / "owned")}, path / "model.safetensors")
    with pytest.raises(InputError, match="expected a safetensors file"):
        load_weights(path, Net())
    assert not (tmp_path / "owned").exists()
