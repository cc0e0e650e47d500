"""The switch to dense weights as a Lightning callback: when, how often, and when it is refused."""

from types import SimpleNamespace

import lightning
import pytest
import torch
from laws import relative_error
from lightning.pytorch import callbacks
from torch import nn

from monarch_sciml import InputError
from monarch_sciml.nn.convert import monarchize
from monarch_sciml.training.sparsity import ReverseSparsification

X = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
Y = torch.cat((X[:, :4].sin(), X[:, 4:8] * X[:, 8:12]), 1)

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def quiet(test):
    """Lightning warns of workers, folders that exist and what it imports."""
    for warning in (
        "ignore:.*does not have many workers.*",
        "ignore:.*Checkpoint directory.*",
        "ignore::FutureWarning",
        "ignore::DeprecationWarning",
    ):
        test = pytest.mark.filterwarnings(warning)(test)
    return test


class Module(lightning.LightningModule):
    def __init__(self, die_at=None):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(16, 30), nn.Tanh(), nn.Linear(30, 8))
        monarchize(self.model, mode="init")
        self.die_at, self.kinds, self.losses = die_at, [], []

    def loss(self, batch):
        return (self.model(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch, index):
        if self.global_step == self.die_at:
            raise RuntimeError("killed")
        self.kinds.append(type(self.model[2]).__name__)
        value = self.loss(batch)
        self.losses.append(value.item())
        return value

    def test_step(self, batch, index):
        return self.loss(batch)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 32)


def fit(module, folder, path=None):
    checkpoint = callbacks.ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    lightning.Trainer(
        accelerator="cpu",
        max_epochs=5,
        callbacks=[ReverseSparsification(0.7), checkpoint],
        **QUIET,
    ).fit(module, ckpt_path=path)
    return module


@quiet
@pytest.mark.parametrize("die_at", [20, 34], ids=["before the switch", "after the switch"])
def test_lightning_switches_once_and_resumes_on_either_side(die_at, tmp_path):
    torch.manual_seed(1)
    whole = fit(Module(), tmp_path / "whole")
    assert whole.kinds == ["MonarchLinear"] * 28 + ["Linear"] * 12
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(Module(die_at), tmp_path / "cut")
    resumed = fit(Module(), tmp_path / "cut", tmp_path / "cut" / "last.ckpt")
    start = 8 * (die_at // 8)
    assert resumed.kinds == whole.kinds[start:]
    assert resumed.losses == pytest.approx(whole.losses[start:], rel=1e-5)
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert relative_error(a.detach(), b.detach()) < 1e-5


class Unswitchable(Module):
    def __init__(self, *kinds):
        super().__init__()
        self.automatic_optimization, self.optimisers = False, kinds

    def configure_optimizers(self):
        return [kind(self.model.parameters(), lr=0.1) for kind in self.optimisers]


@quiet
@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        ([torch.optim.LBFGS], "found LBFGS"),
        ([torch.optim.SGD] * 2, "one optimiser; found 2; switch in a loop"),
    ],
)
def test_lightning_refuses_before_the_first_step(kinds, found, tmp_path):
    module = Unswitchable(*kinds)
    with pytest.raises(InputError, match=found):
        fit(module, tmp_path)
    assert not module.kinds


def fit_small(module, *others, **options):
    options = {"max_steps": 7, "enable_checkpointing": False} | options
    lightning.Trainer(accelerator="cpu", callbacks=[*others], **QUIET, **options).fit(module)
    return module


@quiet
@pytest.mark.parametrize(("fraction", "monarch"), [(0.9, 6), (0.5, 4), (0.01, 1)])
def test_lightning_trains_the_last_step_dense_however_few_there_are(fraction, monarch):
    callback = ReverseSparsification(fraction)
    module = fit_small(Module(), callback)
    assert module.kinds == ["MonarchLinear"] * monarch + ["Linear"] * (7 - monarch)
    assert callback.switched


@quiet
def test_lightning_switches_every_new_model_and_the_same_one_once():
    callback = ReverseSparsification(0.5)
    with pytest.raises(RuntimeError, match="killed"):
        fit_small(Module(die_at=5), callback)
    module = fit_small(Module(), callback)
    assert module.kinds == ["MonarchLinear"] * 4 + ["Linear"] * 3
    assert not module._load_state_dict_pre_hooks
    assert fit_small(module, callback).kinds[7:] == ["Linear"] * 7


@quiet
@pytest.mark.parametrize("name", ["StochasticWeightAveraging", "EMAWeightAveraging"])
def test_lightning_refuses_averages_of_weights(name):
    if not hasattr(callbacks, name):
        pytest.skip("this Lightning has no such callback")
    module, options = Module(), {"swa_lrs": 1e-3} if name == "StochasticWeightAveraging" else {}
    with pytest.raises(InputError, match=f"no callback that averages weights; found {name}; leave out"):
        fit_small(module, ReverseSparsification(), getattr(callbacks, name)(**options), max_epochs=2)
    assert not module.kinds


@quiet
def test_lightning_refuses_a_training_without_end():
    module, unknown = Module(), {"max_steps": -1, "max_epochs": -1, "max_time": {"seconds": 1}}
    with pytest.raises(InputError, match=r"a known number of steps; .*; set max_steps or max_epochs"):
        fit_small(module, ReverseSparsification(), **unknown)
    assert not module.kinds


def test_lightning_refuses_several_devices():
    with pytest.raises(InputError, match="one device; found 2; set devices=1"):
        ReverseSparsification().on_train_start(SimpleNamespace(world_size=2), Module())


@quiet
def test_a_dense_checkpoint_is_tested_with_the_callback(tmp_path):
    whole, tested = fit(Module(), tmp_path), Module()
    both = [ReverseSparsification(), callbacks.ModelCheckpoint(tmp_path)]
    trainer = lightning.Trainer(accelerator="cpu", callbacks=both, **QUIET)
    trainer.test(tested, tested.train_dataloader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert isinstance(tested.model[2], nn.Linear)
    assert torch.equal(tested.model(X), whole.model(X))
    with pytest.raises(RuntimeError, match="Missing key"):
        Module.load_from_checkpoint(tmp_path / "last.ckpt")


def test_a_fraction_is_one():
    with pytest.raises(InputError, match=r"between 0 and 1; found 1.0"):
        ReverseSparsification(1.0)
