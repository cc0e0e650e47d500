"""Training end to end on tiny data: protocols, loss, schedule, refusals that leave nothing behind."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import SETTINGS, assert_same_run, table, weights
from torch import nn
from waves import save_waves, waves

from monarch_sciml.errors import InputError
from monarch_sciml.pde import recipe
from monarch_sciml.pde.datasets import TrajectoryDataset, Windows
from monarch_sciml.pde.models import FramePredictor, ModelConfig
from monarch_sciml.pde.recipe import TrainConfig, split, train
from monarch_sciml.pde.rollouts import one_step_errors, rollout_errors
from monarch_sciml.training.batches import Draw, seeded_generator


def test_seed_decides_everything(data, tmp_path):
    settings = {**SETTINGS, "epochs": 1}
    config = TrainConfig(data=data, out=tmp_path / "a", noise=0.1, symmetries="unforced", **settings)
    train(config)
    torch.rand(7)
    train(dataclasses.replace(config, out=tmp_path / "b"))
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train(dataclasses.replace(config, out=tmp_path / "c", seed=1))
    a, c = weights(tmp_path / "a"), weights(tmp_path / "c")
    learned = [name for name in a if "convs" in name and name.endswith(".weight")]
    assert learned
    assert not any(torch.isclose(a[name], c[name]).any() for name in learned)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> TrainConfig:
    config = TrainConfig(data=data, out=tmp_path_factory.mktemp("runs") / "finished", **SETTINGS)
    train(config)
    return config


def test_last_row_of_the_table_is_the_error_of_the_exported_model(finished):
    held_out = torch.stack([*split(finished)[1]])
    model = FramePredictor.from_pretrained(finished.out)
    with torch.no_grad():
        _, _, block = rollout_errors(model, held_out, 1)
        one_step = one_step_errors(model, held_out, 1)
    last = table(finished.out)[-1]
    assert list(last) == ["epoch", "seconds", "one_step", "rollout", "loss"]
    assert float(last["rollout"]) == pytest.approx(block.mean().item(), rel=1e-5)
    assert float(last["one_step"]) == pytest.approx(one_step.mean().item(), rel=1e-5)
    assert held_out.shape[0] == 2
    np.testing.assert_array_equal(held_out[:, :, 0], waves()[-2:])


def test_scale_is_the_standard_deviation_of_the_training_data(finished):
    scale = FramePredictor.from_pretrained(finished.out).config.scale
    assert scale == pytest.approx(waves()[:6].astype(np.float64).std(), rel=1e-9)


def test_training_learns(data, tmp_path):
    """Linear waves: far better than predicting zero, whose error is 1, and than predicting no change."""
    config = TrainConfig(
        data=data,
        out=tmp_path / "run",
        learning_rate=8e-3,
        **{**SETTINGS, "epochs": 15, "batch": 4, "width": 8},
    )
    last = table(train(config))[-1]
    w = torch.from_numpy(waves()[-2:])
    still = ((w[:, 1:] - w[:, :-1]).flatten(2).norm(dim=-1) / w[:, 1:].flatten(2).norm(dim=-1)).mean().item()
    assert float(last["one_step"]) < 0.75 * min(1, still)


def damaged(path: Path, case: str) -> Path:
    w = waves()
    match case:
        case "missing":
            return path
        case "nan":
            w[1, 2, 3, 4] = np.nan
        case "constant":
            w[:] = 0.1
        case "short":
            w = w[:, :1]
        case "zeros" | "zeros held out":
            w[1 if case == "zeros" else 7, 4] = 0
        case "axes":
            w = w[0, 0]
        case "text":
            path.write_text("not an array")
            return path
        case "truncated":
            np.save(path, w)
            path.write_bytes(path.read_bytes()[:-100])
            return path
    np.save(path, w)
    return path


@pytest.mark.parametrize(
    ("case", "changes", "match"),
    [
        ("missing", {}, r"found no"),
        ("nan", {}, r"finite numbers; found NaN or infinity in trajectory 1 at time index 2"),
        ("constant", {}, r"training data that vary; found a constant field"),
        ("short", {}, r"for protocol B; found 1 in data.npy; add the state to start from, or use longer tr"),
        (
            "zeros",
            {},
            r"not zero everywhere.*; found zeros in trajectory 1 at time index 4 of data.npy; leave",
        ),
        ("zeros held out", {"first_frame": 2}, r"zeros in trajectory 7 at time index 4 of data.npy; leave"),
        (
            "",
            {"protocol": "A"},
            r"more than 10 frames for protocol A; found 6 in .*; use protocol B, or longer",
        ),
        ("axes", {}, r"expected .*; found .*"),
        ("text", {}, r"expected .*; found .*"),
        ("truncated", {}, r"expected .*; found .*"),
        ("", {"modes": 17}, r"at most 16 modes on a grid of \(16, 16\); found modes=17"),
        ("", {"modes": 9, "every": 2}, r"at most 8 modes on a grid of \(8, 8\); found modes=9; .*--every"),
        ("", {"every": 7}, r"every ≥ 1 that divides"),
        ("", {"n_train": 7}, r"share the 8 trajectories of .*; found n_train=7, n_test=2; lower"),
        ("", {"first_frame": 7}, r"expected .*times"),
        ("", {"frames": 9}, r"expected .*times"),
        ("", {"device": "cuda"}, r"a CUDA device; found none"),
        ("", {"device": "gpu"}, r"device out of auto, cpu, cuda; found 'gpu'"),
        ("", {"protocol": "C"}, r"protocol out of A, B; found 'C'"),
        ("", {"symmetries": "all"}, r"symmetries out of none, .*; found 'all'"),
        ("", {"model": "fno_monarch"}, r"model out of fno, fno-monarch, .*; found 'fno_monarch'"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, monkeypatch, case, changes, match):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = damaged(tmp_path / "data.npy", case)
    with pytest.raises(InputError, match=match) as error:
        train(TrainConfig(data=data, out=tmp_path / "run", **{**SETTINGS, **changes}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_unwritable_output(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="an output directory that can be written"):
        train(TrainConfig(data=data, out=tmp_path / "file" / "run", **SETTINGS))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"modes": 0}, r"modes of at least 1; found 0; raise --modes"),
        ({"n_train": 0}, r"n_train of at least 1; found 0; raise --n-train"),
        ({"frames": 0}, r"frames of at least 1; found 0"),
        ({"threads": 0}, r"threads of at least 1; found 0"),
        ({"seed": -1}, r"seed of at least 0; found -1"),
        ({"seed": 2**32}, r"a seed below 2\*\*32; found 4294967296; lower --seed"),
        ({"devices": 0}, r"devices of at least 1; found 0"),
        ({"checkpoint_minutes": -1.0}, r"checkpoint_minutes of at least 0; found -1.0"),
        ({"first_frame": -2}, r"first_frame of at least 0; found -2; raise --first-frame"),
        ({"noise": float("nan")}, r"noise of at least 0; found nan"),
        ({"learning_rate": 0.0}, r"a positive learning_rate; found 0.0"),
    ],
)
def test_impossible_settings(changes, match):
    with pytest.raises(InputError, match=match):
        TrainConfig(data=Path("a"), out=Path("b"), **{**SETTINGS, **changes})


def test_paths_may_be_strings():
    config = TrainConfig(data="a", out="b")  # type: ignore[arg-type]
    assert config == TrainConfig(data=Path("a"), out=Path("b"))


def test_infinite_loss_keeps_the_last_checkpoint(data, tmp_path, monkeypatch):
    original, calls = recipe.relative_l2, iter(range(10**6))

    def diverging(*arguments, **options):
        return original(*arguments, **options) * (torch.nan if next(calls) == 5 else 1)

    monkeypatch.setattr(recipe, "relative_l2", diverging)
    config = TrainConfig(data=data, out=tmp_path / "run", **SETTINGS)
    with pytest.raises(InputError, match=r"a finite loss; found nan at step 5; lower the learning rate"):
        train(config)
    assert torch.load(config.out / "last.ckpt", weights_only=True)["global_step"] == 4
    assert not (config.out / "model").exists()


def draw(batch: torch.Tensor, seed: int = 0) -> Draw:
    """Random numbers of a process on its own."""
    return Draw(seeded_generator(seed), slice(None), len(batch))


class Toy(nn.Module):
    """Predicts ``factor`` times the mean of its frames."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.9))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.factor * frames.mean(1)


def test_loss_is_the_sum_over_frames_of_the_mean_relative_error(double):
    """By hand for protocol A: ten frames in, three out, the window sliding over the predictions."""
    model = Toy()
    x, y = torch.randn(4, 10, 1, 5, 5), torch.randn(4, 3, 1, 5, 5)
    loss = recipe._loss(0.0)(model, (x, y), draw(x))
    first = 0.9 * x.mean(1)
    second = 0.9 * (x[:, 1:].sum(1) + first) / 10
    third = 0.9 * (x[:, 2:].sum(1) + first + second) / 10
    by_hand = 0.0
    for n in range(4):
        for t, frame in enumerate((first, second, third)):
            by_hand += (frame[n] - y[n, t]).norm() / y[n, t].norm() / 4
    torch.testing.assert_close(loss, by_hand)
    (gradient,) = torch.autograd.grad(loss, model.factor)
    step = 1e-6
    with torch.no_grad():
        model.factor += step
        above = recipe._loss(0.0)(model, (x, y), draw(x))
    assert gradient.item() == pytest.approx((above - loss).item() / step, rel=1e-4)


def test_noise_is_on_the_input_alone_and_of_the_size_asked_for():
    seen = []

    def still(frames):
        seen.append(frames)
        return frames[:, -1]

    x, y = torch.ones(3, 1, 1, 40, 40), torch.ones(3, 1, 1, 40, 40)
    recipe._loss(0.3)(still, (x, y), draw(x, 1))
    recipe._loss(0.3)(still, (x, y), draw(x, 1))
    recipe._loss(0.3)(still, (x, y), draw(x, 2))
    assert torch.equal(seen[0], seen[1])
    assert not torch.isclose(seen[0], seen[2]).all()
    assert (seen[0] - 1).std().item() == pytest.approx(0.3, rel=0.05)
    assert (x == 1).all()


def test_noise_is_relative_to_the_standard_deviation_of_the_data(tmp_path, monkeypatch):
    """So a training of the same data in other units is the same training."""
    losses, noises, original = [], [], recipe._loss

    def noted(noise, symmetries, scale):
        noises.append(noise * scale)
        return original(noise, symmetries, scale)

    monkeypatch.setattr(recipe, "_loss", noted)
    for units in (1, 64):
        np.save(tmp_path / f"{units}.npy", units * waves())
        settings = {**SETTINGS, "epochs": 1, "noise": 0.5}
        run = train(TrainConfig(data=tmp_path / f"{units}.npy", out=tmp_path / f"in {units}", **settings))
        losses.append(float(table(run)[-1]["loss"]))
    deviation = waves()[: SETTINGS["n_train"]].astype(np.float64).std()
    assert noises == pytest.approx([0.5 * deviation, 32 * deviation])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_symmetries_move_input_and_target_alike():
    seen = []

    def still(frames):
        seen.append(frames)
        return frames[:, -1]

    x = torch.randn(6, 1, 1, 8, 8)
    assert recipe._loss(0.0, "forced")(still, (x, x), draw(x, 1)) == 0
    recipe._loss(0.0, "forced")(still, (x, x), draw(x, 1))
    assert torch.equal(seen[0], seen[1])
    moved = [not torch.equal(a, b) for a, b in zip(seen[0], x, strict=True)]
    assert sum(moved) > 3
    assert torch.equal(seen[0].square().flatten(1).sort(1)[0], x.square().flatten(1).sort(1)[0])


def test_data_without_these_symmetries_leave_nothing_behind(tmp_path):
    np.save(tmp_path / "oblong.npy", np.random.default_rng(0).standard_normal((8, 4, 12, 16)))
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"found 1 channels on a grid of 12 × 16"):
        train(TrainConfig(data=tmp_path / "oblong.npy", out=out, symmetries="unforced", **SETTINGS))
    assert not out.exists()


def test_with_symmetries_every_divides_the_number_of_points(tmp_path):
    """Of 33 points every second leaves a last gap of one point, if the domain is periodic."""
    settings = {**SETTINGS, "epochs": 1, "every": 2, "symmetries": "unforced"}
    data = save_waves(tmp_path / "33.npy", grid=(33, 33))
    with pytest.raises(InputError, match=r"the last gap of 33 points is 1 and not 2; use a divisor of 33 as"):
        train(TrainConfig(data=data, out=tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()
    train(TrainConfig(data=save_waves(tmp_path / "32.npy", grid=(32, 32)), out=tmp_path / "run", **settings))


def test_zeros_that_are_not_predicted_are_no_mistake(tmp_path):
    w = waves()
    w[:, 0] = 0
    np.save(tmp_path / "from_rest.npy", w)
    split(TrainConfig(data=tmp_path / "from_rest.npy", out=tmp_path / "run", **SETTINGS))


@pytest.mark.parametrize("unit", [2.0**-73, 2.0**66])
def test_training_does_not_depend_on_units(tmp_path, finished, unit):
    """To the last digit, where squares of the data leave float32."""
    np.save(tmp_path / "data.npy", (unit * waves()).astype(np.float32))
    train(TrainConfig(data=tmp_path / "data.npy", out=tmp_path / "run", **SETTINGS))
    assert_same_run(finished.out, tmp_path / "run")


@pytest.mark.parametrize(("protocol", "n_in", "windows", "n_out"), [("A", 10, 6, 3), ("B", 1, 72, 1)])
def test_protocols(long_data, tmp_path, monkeypatch, protocol, n_in, windows, n_out):
    from monarch_sciml.training import loop

    given = {}

    def fit(task, train, held_out, run, **options):
        given.update(options, train=train, held_out=held_out, task=task)
        (run / "metrics.csv").write_text("epoch,seconds\n1,0\n")  # which the model's card quotes

    monkeypatch.setattr(loop, "fit", fit)
    config = TrainConfig(data=long_data, out=tmp_path / "run", **{**SETTINGS, "protocol": protocol})
    train(config)
    x, y = given["train"][0]
    assert (len(given["train"]), len(x), len(y)) == (windows, n_in, n_out)
    x, y = given["held_out"][0]
    assert (len(given["held_out"]), len(x), len(y)) == (2, n_in, 13 - n_in)
    assert (given["epochs"], given["batch"]) == (3, 8)
    assert given["task"].model.config.n_in == n_in


def learning_rates(steps_per_epoch: int, **changes) -> tuple[torch.optim.Optimizer, list[float]]:
    config = TrainConfig(data=Path("a"), out=Path("b"), **{**SETTINGS, **changes})
    optimiser, schedule = recipe._optimiser(config)(nn.Linear(1, 1), steps_per_epoch)
    rates = []
    for _ in range(config.epochs * steps_per_epoch):
        rates.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return optimiser, [*rates, schedule.get_last_lr()[0]]


def test_optimiser_of_protocol_a():
    optimiser, rates = learning_rates(3, protocol="A", epochs=10)
    assert type(optimiser) is torch.optim.Adam
    # the mean over a batch is as many times smaller than the sum over it, to which Li et al. add 1e-4
    assert optimiser.defaults["weight_decay"] == 1e-4 / SETTINGS.get("batch", 20)
    expected = [1e-3 * 0.5 ** (step // 6) for step in range(31)]
    assert rates == pytest.approx(expected)
    assert learning_rates(3, protocol="A", epochs=2, learning_rate=0.1)[1][0] == 0.1


def test_optimiser_of_protocol_b():
    optimiser, rates = learning_rates(3, protocol="B", epochs=10, learning_rate=8e-3)
    assert type(optimiser) is torch.optim.AdamW
    assert optimiser.defaults["weight_decay"] == 1e-4
    assert rates == pytest.approx([4e-3 * (1 + np.cos(np.pi * step / 30)) for step in range(31)], abs=1e-12)
    assert learning_rates(3, protocol="B")[1][0] == 5e-3


@pytest.mark.parametrize(("transform", "spectral"), [(0.1, 1.0), (1.0, 3.0), (0.1, 3.0), (3.0, 3.0)])
@pytest.mark.parametrize("kind", ["fno", "fno-monarch"])
def test_transforms_and_spectral_weights_may_have_learning_rates_of_their_own(
    data, kind, transform, spectral
):
    rates = {"learning_rate": 1e-2, "transform_rate": transform, "spectral_rate": spectral}
    config = TrainConfig(data=data, out=Path("run"), **SETTINGS, **rates)
    model = ModelConfig(kind, (8, 8), channels=1, n_in=1, modes=4, width=2, layers=2).build()
    optimiser, _ = recipe._optimiser(config)(model, 3)
    found = {p: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert (
        len(found) == len(list(model.parameters())) == sum(len(g["params"]) for g in optimiser.param_groups)
    )
    seen = set()
    for name, parameter in model.named_parameters():
        learned = ".analysis." in name or ".synthesis." in name
        mixing = ".convs." in name and "weight" in name
        expected = transform if learned else spectral if mixing else 1
        assert found[parameter] == pytest.approx(1e-2 * expected), name
        seen.add((learned, mixing))
    assert len(seen) == (3 if kind == "fno-monarch" else 2)


def test_in_memory_windows_are_what_the_file_holds(data):
    training, _ = split(TrainConfig(data=data, out=Path("run"), **{**SETTINGS, "every": 2, "first_frame": 1}))
    direct = TrajectoryDataset(data, times=slice(1, None), every=2, samples=slice(6))
    assert training.grid == (8, 8)
    for a, b in zip(Windows(training, 1, 1), Windows(direct, 1, 1), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
