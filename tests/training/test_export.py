"""Exported models: the same function after a round trip, and nothing that executes."""

import os
import pickle
from pathlib import Path

import pytest
import torch
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


def test_round_trip_is_bitwise(tmp_path):
    model, other = Net(), Net()
    assert save_model(tmp_path / "model", model, {"n": 3}) == tmp_path / "model"
    assert sorted(f.name for f in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    assert read_json(tmp_path / "model" / "config.json") == {"n": 3}
    assert load_weights(tmp_path / "model", other) is other
    for name, tensor in model.state_dict().items():
        assert other.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(other.state_dict()[name], tensor)


def test_export_replaces_an_older_one(tmp_path):
    first, second = Net(), Net()
    save_model(tmp_path / "model", first, {"n": 3})
    save_model(tmp_path / "model", second, {"n": 3})
    assert torch.equal(load_weights(tmp_path / "model", Net()).z, second.z)  # type: ignore[arg-type]
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("step", ["save_file", "write_json", "replace"])
def test_interrupted_export_leaves_nothing_under_the_name(tmp_path, monkeypatch, step):
    from monarch_sciml.training import export

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(export.os if step == "replace" else export, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_model(tmp_path / "model", Net(), {})
    assert not (tmp_path / "model").exists()
    save_model(tmp_path / "model", Net(), {})  # what was left behind is not in the way
    assert [f.name for f in tmp_path.iterdir()] == ["model"]


def test_missing_and_damaged_weights(tmp_path):
    path = save_model(tmp_path / "model", Net(), {})
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
    path = save_model(tmp_path / "model", Net(), {})
    with pytest.raises(
        InputError, match=r"weights that fit .*; found .*size mismatch for a.*; keep"
    ) as error:
        load_weights(path, Net(4))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"weights that fit .*; found .*Missing key.*weight"):
        load_weights(path, nn.Linear(2, 2))


def test_pickles_are_refused_and_not_executed(tmp_path):
    path = save_model(tmp_path / "model", Net(), {})
    for protocol in (0, 2, 5):
        (path / "model.safetensors").write_bytes(pickle.dumps(Malice(tmp_path / "owned"), protocol))
        with pytest.raises(InputError, match="expected a safetensors file"):
            load_weights(path, Net())
    torch.save({"a": Malice(tmp_path / "owned")}, path / "model.safetensors")
    with pytest.raises(InputError, match="expected a safetensors file"):
        load_weights(path, Net())
    assert not (tmp_path / "owned").exists()
