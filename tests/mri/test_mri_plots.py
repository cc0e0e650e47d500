"""Pictures: written whole, upright, on stated scales, without touching the user's matplotlib."""

import subprocess
import sys

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
import torch

from monarch_sciml import LearnedFourier
from monarch_sciml.errors import InputError
from monarch_sciml.mri import plots
from monarch_sciml.mri.plots import save_comparison, save_transform
from monarch_sciml.training import plots as shared


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look into their panels."""
    figures, save = [], shared.save_figure

    def remember(figure, path, **options):
        figures.append(figure)
        save(figure, path, **options)

    for module in (plots, shared):
        monkeypatch.setattr(module, "save_figure", remember)
    return figures


def pictures(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def slices(count, shape=(20, 14)):
    return {f"method {i}": torch.randn(shape, dtype=torch.complex64) for i in range(count)}


def scored(images):
    return {name: {"nmse": 0.01234, "psnr": 31.456, "ssim": 0.98765} for name in images}


@pytest.mark.parametrize(("count", "target"), [(1, False), (2, True), (9, True)])
def test_any_number_of_methods(count, target, tmp_path, drawn):
    images = slices(count)
    save_comparison(tmp_path / "a.png", torch.rand(20, 14) if target else None, images, scores=scored(images))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"], "no half-written neighbour stays"
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert (picture[0, 0] == 1).all(), "on white"
    assert picture.std() > 0.05
    assert len(pictures(drawn[0])) == (2 * count + 1 if target else count)
    texts = [text.get_text() for axes in drawn[0].axes for text in (axes.title, axes.xaxis.label)]
    assert set(images) <= set(texts)
    assert texts.count("NMSE 0.0123\nPSNR 31.46 dB\nSSIM 0.9877") == count
    assert drawn[0].get_supxlabel() == "Research use only, not for clinical use"


def test_arrays_of_numpy_are_drawn_as_tensors_are(tmp_path):
    images = slices(2)
    save_comparison(tmp_path / "a.png", torch.ones(20, 14), images)
    arrays = {name: image.numpy() for name, image in images.items()}
    save_comparison(tmp_path / "b.png", np.ones((20, 14)), arrays)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_images_and_errors_are_upright_on_common_scales(tmp_path, drawn):
    target = torch.zeros(30, 20)
    target[:10] = 2.0  # bright on top
    images = {"twice": 2 * target * 1j, "same": target}
    save_comparison(tmp_path / "a.png", target, images, error_scale=4)
    first, twice, same, error, none = pictures(drawn[0])
    for picture in (first, twice, same, error, none):
        assert picture.origin == "upper"
    assert {p.get_clim() for p in (first, twice, same)} == {(0, 2.0)}
    assert {p.get_clim() for p in (error, none)} == {(0, 0.5)}
    assert np.array_equal(twice.get_array(), 2 * target.numpy())
    assert np.array_equal(error.get_array(), target.numpy())
    assert not none.get_array().any()
    assert any("× 4" in text.get_text() for axes in drawn[0].axes for text in axes.texts)


@pytest.mark.parametrize(("grid", "inverse"), [((16, 12), False), ((7, 15), True)])
def test_the_weights_of_a_transform_are_seen(grid, inverse, tmp_path, drawn):
    """A transform whose k-space is multiplied by a diagonal shows that diagonal, and nothing beside it."""
    transform = LearnedFourier(grid, inverse=inverse)
    weights = np.linspace(0.5, 1.5, grid[1])
    scale = torch.from_numpy(weights)

    def compensated(axis, size=None):
        W = LearnedFourier.matrix(transform, axis, size)
        if axis == "y":
            return W
        return W * scale if inverse else scale[:, None] * W

    transform.matrix = compensated
    save_transform(tmp_path / "t.png", transform)
    curves = [axes.lines[1].get_ydata() for axes in drawn[0].axes if len(axes.lines) == 2]
    assert np.allclose(curves[0], 1, atol=1e-5)
    assert np.allclose(curves[1], weights, atol=1e-5)
    ratio_y, change_y, beside_y, ratio_x, change_x, beside_x = (
        p.get_array() for p in pictures(drawn[0]) if p.get_array().ndim == 2
    )
    assert np.allclose(ratio_y, 1, atol=1e-4)
    assert np.allclose(change_y, 0, atol=1e-4)
    assert np.allclose(beside_y, 0, atol=1e-4)
    along = weights if inverse else weights[:, None]
    assert np.allclose(ratio_x, along, atol=1e-4)
    assert np.allclose(change_x, np.abs(along - 1) * np.ones_like(ratio_x), atol=1e-4)
    assert np.allclose(beside_x, np.diag(np.abs(weights - 1)), atol=1e-4)
    assert drawn[0].get_supxlabel() == plots.NOTICE
    assert (tmp_path / "t.png").stat().st_size > 10_000


def test_the_users_matplotlib_is_left_alone(tmp_path):
    """No pyplot, no backend chosen, no settings changed; and nothing heavy on import."""
    program = (
        "import sys, torch\n"
        "from monarch_sciml.mri.plots import save_comparison\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"  # looking up the backend would choose one
        f"save_comparison({str(tmp_path / 'a.png')!r}, None, {{'x': torch.rand(8, 9)}})\n"
        "assert dict.items(matplotlib.rcParams) == dict.items(before)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_upright_whatever_the_user_prefers(tmp_path, drawn):
    with mpl.rc_context({"image.origin": "lower", "image.cmap": "jet"}):
        save_comparison(tmp_path / "a.pdf", None, slices(1))
    assert pictures(drawn[0])[0].origin == "upper"
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_comparison_mistakes(tmp_path):
    path, good = tmp_path / "a.png", torch.rand(8, 9)
    with pytest.raises(InputError, match="at least one image; found none"):
        save_comparison(path, good, {})
    with pytest.raises(InputError, match=r"images of shape \(8, 9\); found x: \(9, 8\); crop them"):
        save_comparison(path, good, {"x": good.T})
    with pytest.raises(InputError, match=r"one slice \(H, W\) as x; found shape \(1, 8, 9\); choose a slice"):
        save_comparison(path, good, {"x": good[None]})
    with pytest.raises(InputError, match="a finite image as the target; found NaN"):
        save_comparison(path, good / 0 * 0, {"x": good})
    with pytest.raises(InputError, match="a positive error_scale; found 0"):
        save_comparison(path, good, {"x": good}, error_scale=0)
    with pytest.raises(InputError, match=r"a picture .png, .pdf or .svg; found a.docx; change the ending"):
        save_comparison(tmp_path / "a.docx", good, {"x": good})
    with pytest.raises(InputError, match=r"an existing directory; found .*absent"):
        save_comparison(tmp_path / "absent" / "a.png", good, {"x": good})
    assert not list(tmp_path.iterdir())


def test_transform_mistakes(tmp_path):
    transform = LearnedFourier((6, 8))
    with torch.no_grad():
        transform.L_x[0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="finite entries of the transform; found NaN"):
        save_transform(tmp_path / "a.png", transform)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_images(value, tmp_path):
    image = torch.full((8, 9), value)
    save_comparison(tmp_path / "a.png", image, {"x": image})
    assert (tmp_path / "a.png").exists()
