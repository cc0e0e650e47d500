"""Evaluation of reconstructions: its numbers are those of the metrics, its refusals name the file."""

import json
import math
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from monarch_sciml.errors import InputError
from monarch_sciml.mri import evaluation
from monarch_sciml.mri.evaluation import EvaluateConfig, VolumeScores
from monarch_sciml.mri.masks import MaskConfig
from monarch_sciml.mri.metrics import center_crop, per_slice, scores
from monarch_sciml.mri.reconstruction import ReconstructConfig, reconstruct
from monarch_sciml.mri.simulation import SimulateConfig, simulate

SHAPE = (3, 16, 12)


def evaluate(config: EvaluateConfig) -> list[VolumeScores]:
    """Of the only prediction."""
    (results,) = evaluation.evaluate(config).values()
    return results


def markdown_table(results: list[VolumeScores]) -> str:
    return evaluation.markdown_table({"mine": results})


def write(path: Path, key: str, volume: np.ndarray | None, **attributes) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = np.zeros((3, 4))
        if volume is not None:
            file[key] = volume
        file.attrs.update(attributes)
    return path


def volume(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.fixture
def folders(tmp_path: Path) -> EvaluateConfig:
    """Two volumes AXT2 and one AXFLAIR; 4×, 8× (said by the prediction only) and 4×."""
    for i, acquisition in enumerate(("AXT2", "AXFLAIR", "AXT2")):
        attributes = {} if i == 1 else {"acceleration": 4}
        name = f"file{i}.h5"
        target = volume(i)
        write(tmp_path / "target" / name, "reconstruction_rss", target, acquisition=acquisition, **attributes)
        write(tmp_path / "mine" / name, "reconstruction", 0.9 * target + 0.05 * volume(i + 9), acceleration=8)
    return EvaluateConfig(tmp_path / "target", (tmp_path / "mine",), tmp_path / "new" / "out")


def changed(config: EvaluateConfig, **changes) -> EvaluateConfig:
    return EvaluateConfig(**{**vars(config), **changes})


def test_scores_are_those_of_the_metrics(folders: EvaluateConfig) -> None:
    results = evaluate(folders)
    assert [result.name for result in results] == ["file0.h5", "file1.h5", "file2.h5"]
    for i, result in enumerate(results):
        target, prediction = volume(i), 0.9 * volume(i) + 0.05 * volume(i + 9)
        assert result.scores == scores(target, prediction)
        assert result.slices == per_slice(target, prediction)
        assert result.shape == result.target_shape == SHAPE[1:]
        assert result.target == "reconstruction_rss"
    assert [(r.acquisition, r.acceleration) for r in results] == [("AXT2", 4), ("AXFLAIR", 8), ("AXT2", 4)]


def test_files_that_are_written(folders: EvaluateConfig) -> None:
    assert folders.out is not None
    results = evaluate(folders)
    assert sorted(os.listdir(folders.out)) == ["comparison.png", "metrics.json", "table.md"]
    assert (folders.out / "table.md").read_text() == markdown_table(results)
    saved = json.loads((folders.out / "metrics.json").read_text())
    assert saved["notice"] == "Research use only, not for clinical use."
    assert [v["scores"] for v in saved["predictions"]["mine"]["volumes"]] == [r.scores for r in results]
    mean, error = saved["predictions"]["mine"]["mean_and_error"]["psnr"]
    values = [r.scores["psnr"] for r in results]
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    assert evaluate(folders) == results  # again, over the earlier files
    assert evaluate(changed(folders, out=None)) == results


def test_the_table() -> None:
    def result(name: str, acquisition: str | None, value: float) -> VolumeScores:
        of_volume = {"nmse": value / 100, "psnr": 30 + value, "ssim": 0.9}
        return VolumeScores(name, acquisition, None, "t", (9, 9), (9, 9), of_volume, [of_volume] * 2)

    results = [result("a.h5", "AXT2", 1), result("b.h5", "AXT2", 3), result("c.h5", "AXT1", 8)]
    lines = markdown_table(results).splitlines()
    assert lines[2:5] == [
        "| mine | all | 3 | 6 | 0.0400 ± 0.0208 | 34.00 ± 2.08 | 0.9000 ± 0.0000 |",
        "| mine | AXT1 | 1 | 2 | 0.0800 | 38.00 | 0.9000 |",
        "| mine | AXT2 | 2 | 4 | 0.0200 ± 0.0100 | 32.00 ± 1.00 | 0.9000 ± 0.0000 |",
    ]
    assert lines[-1] == "Research use only, not for clinical use."
    assert "| mine | all | 1 | 2 | 0.0100 | 31.00 | 0.9000 |" in markdown_table(results[:1])
    with pytest.raises(InputError, match="at least one volume"):
        markdown_table([])


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"acquisition": "AXT2"}, [0, 2]),
        ({"acceleration": 4}, [0, 2]),
        ({"acceleration": 8.0}, [1]),
        ({"acquisition": "AXFLAIR", "acceleration": 8}, [1]),
    ],
)
def test_filters(folders: EvaluateConfig, changes, names) -> None:
    results = evaluate(changed(folders, **changes))
    assert [result.name for result in results] == [f"file{i}.h5" for i in names]


def test_predictions_of_what_is_not_asked_for_may_be_missing(folders: EvaluateConfig) -> None:
    (folders.prediction[0] / "file1.h5").unlink()
    assert len(evaluate(changed(folders, acquisition="AXT2"))) == 2
    with pytest.raises(InputError, match=r"a prediction in .*mine for every target; found none for file1.h5"):
        evaluate(folders)


def test_filters_that_leave_nothing(folders: EvaluateConfig) -> None:
    seen = r"found AXFLAIR at 8×, AXT2 at 4×; choose one of these"
    with pytest.raises(InputError, match=f"volumes of AXT1; {seen}"):
        evaluate(changed(folders, acquisition="AXT1"))
    with pytest.raises(InputError, match=f"volumes of AXT2 at 8×; {seen}"):
        evaluate(changed(folders, acquisition="AXT2", acceleration=8))
    with pytest.raises(InputError, match=f"volumes of any acquisition at 5×; {seen}"):
        evaluate(changed(folders, acceleration=5))


@pytest.mark.parametrize("shape", [(3, 20, 19), (3, 16, 13), (3, 12, 12), (3, 20, 9)])
def test_images_are_cropped_to_the_shorter_of_both(folders: EvaluateConfig, shape) -> None:
    prediction = volume(5, shape)
    write(folders.prediction[0] / "file1.h5", "reconstruction", prediction)
    result = evaluate(changed(folders, acquisition="AXFLAIR"))[0]
    common = min(16, shape[1]), min(12, shape[2])
    assert (result.target_shape, result.shape) == ((16, 12), common)
    assert result.scores == scores(center_crop(volume(1), common), center_crop(prediction, common))
    said = "smaller than their targets, compared on what they cover: file1.h5." in markdown_table([result])
    assert said == (common != (16, 12))


def test_single_coil_targets_and_attributes_as_bytes(folders: EvaluateConfig) -> None:
    path = write(folders.target / "file1.h5", "reconstruction_rss", volume(7), acquisition=np.bytes_(b"AXT1"))
    with h5py.File(path, "a") as file:
        file["reconstruction_esc"] = volume(8)
    result = evaluate(changed(folders, acquisition="AXT1"))[0]
    assert result.target == "reconstruction_esc"
    assert result.scores["nmse"] == scores(volume(8), 0.9 * volume(1) + 0.05 * volume(10))["nmse"]


def test_attributes_as_arrays_of_one_element(folders: EvaluateConfig) -> None:
    """As some HDF5 libraries write every attribute."""
    about = {"acquisition": np.array([b"AXT1"]), "acceleration": np.array([3])}
    write(folders.target / "file1.h5", "reconstruction_rss", volume(7), **about)
    (result,) = evaluate(changed(folders, acquisition="AXT1", acceleration=3.0))
    assert (result.name, result.acquisition, result.acceleration) == ("file1.h5", "AXT1", 3.0)


def test_numbers_json_does_not_know(folders: EvaluateConfig) -> None:
    target = volume(1)
    target[0] = 0
    for path, key in ((folders.target, "reconstruction_rss"), (folders.prediction[0], "reconstruction")):
        write(path / "file1.h5", key, target)
    results = evaluate(folders)
    assert math.isinf(results[1].scores["psnr"])
    assert folders.out is not None
    text = (folders.out / "metrics.json").read_text()
    saved = json.loads(text, parse_constant=pytest.fail)
    assert saved["predictions"]["mine"]["volumes"][1]["scores"]["psnr"] is None
    assert saved["predictions"]["mine"]["volumes"][1]["slices"][0]["nmse"] is None


# --------------------------------------------------------------------------------------------------- mistakes


def refused(config: EvaluateConfig, message: str) -> None:
    """Refused, and nothing is written."""
    with pytest.raises(InputError, match=message):
        evaluate(config)
    assert config.out is None or not config.out.exists() or not any(config.out.iterdir())


def test_folders_that_are_none(folders: EvaluateConfig, tmp_path: Path) -> None:
    refused(
        changed(folders, target=tmp_path / "absent"), r"a directory of .h5 files; found nothing at .*absent"
    )
    refused(changed(folders, prediction=(folders.target / "file0.h5",)), r"found the file .*file0.h5")
    (tmp_path / "empty").mkdir()
    refused(changed(folders, prediction=(tmp_path / "empty",)), r".h5 files in .*empty; found none")
    refused(changed(folders, out=folders.target / "file0.h5" / "out"), "an output directory; found")


def test_predictions_without_target(folders: EvaluateConfig) -> None:
    for i in range(3, 9):
        write(folders.prediction[0] / f"file{i}.h5", "reconstruction", volume(i))
    message = r"a target in .*target for every prediction; found none for file3.h5, .*file6.h5 and 2 more"
    refused(folders, message)


@pytest.mark.parametrize("which", ["target", "prediction"])
def test_damaged_files(folders: EvaluateConfig, which: str) -> None:
    path = {"target": folders.target, "prediction": folders.prediction[0]}[which] / "file1.h5"
    content = path.read_bytes()
    for damaged in (b"", b"garbage", content[: len(content) // 3], content[:-900]):
        path.write_bytes(damaged)
        refused(folders, r"a readable HDF5 file; found .*file1.h5 \(OSError: .*it is damaged or incomplete")


def test_damage_found_while_reading(folders: EvaluateConfig) -> None:
    path = folders.prediction[0] / "file1.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("reconstruction", data=volume(0), chunks=SHAPE, fletcher32=True)
        file.flush()
        offset = data.id.get_chunk_info(0).byte_offset
    with path.open("r+b") as stream:
        stream.seek(offset + 40)
        stream.write(b"damage")
    refused(folders, r"a readable HDF5 file; found .*file1.h5 \(OSError")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, r"a dataset reconstruction in .*file1.h5; found only kspace; add it"),
        (
            volume(0)[0],
            r"real reconstruction .slices, height, width. in .*file1.h5; found float32 \(16, 12\)",
        ),
        (volume(0) * 1j, r"found complex64 \(3, 16, 12\)"),
        (np.full(SHAPE, b"a"), r"found \|S1 \(3, 16, 12\)"),
        (volume(0)[:2], r"3 slices in .*file1.h5, as in its target; found 2; reconstruct the whole volume"),
        (volume(0)[:, :6], r"images of at least 7 × 7 for SSIM; found 6 × 12 in file1.h5"),
        (volume(0)[:, :0], r"found shape \(3, 16, 12\) in file1.h5"),
        (np.where(volume(0) == volume(0)[1, 2, 3], np.nan, 1), r"finite .*file1.h5; found NaN .*in slice 1;"),
    ],
)
def test_predictions_that_do_not_fit(folders: EvaluateConfig, data, message: str) -> None:
    write(folders.prediction[0] / "file1.h5", "reconstruction", data)
    refused(folders, message)


def test_targets_that_do_not_fit(folders: EvaluateConfig) -> None:
    path = folders.target / "file1.h5"
    write(path, "reconstruction_rss", None)
    refused(folders, r"a dataset reconstruction_esc or reconstruction_rss in .*file1.h5; found only kspace")
    write(path, "reconstruction_rss", np.zeros(SHAPE))
    refused(folders, r"a target with values other than 0; found zeros only in file1.h5")
    with h5py.File(path, "w") as file:
        file.create_group("reconstruction_rss")
    refused(folders, r"real reconstruction_rss .*in .*file1.h5; found a group")


def test_several_predictions_side_by_side(folders: EvaluateConfig, tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "other" / f"file{i}.h5", "reconstruction", 0.5 * volume(i))
    both = changed(folders, prediction=(tmp_path / "mine", tmp_path / "other"))
    results = evaluation.evaluate(both)
    assert list(results) == ["mine", "other"]
    assert results["mine"] == evaluate(folders)
    assert results["other"][0].scores["nmse"] == pytest.approx(0.25)
    table = evaluation.markdown_table(results).splitlines()
    assert [line.split(" | ")[0] for line in table[2:4]] == ["| mine", "| other"]
    assert (folders.out / "comparison.png").stat().st_size > 10_000


def test_predictions_of_one_name_are_refused(folders: EvaluateConfig) -> None:
    folder = folders.prediction[0]
    message = "prediction directories of different names"
    for predictions in ((folder, folder), ()):
        with pytest.raises(InputError, match=message):
            evaluation.evaluate(changed(folders, prediction=predictions))


# ----------------------------------------------------------------------------------------------- acceleration


@pytest.fixture
def drawn(folders: EvaluateConfig) -> EvaluateConfig:
    """Two volumes masked at 2× and 4×, as asked, and one of which only the rate is known that came of it."""
    for i, attributes in enumerate(({"asked_acceleration": 2.0}, {"asked_acceleration": 4.0}, {})):
        write(folders.target / f"file{i}.h5", "reconstruction_rss", volume(i))
        attributes = {"acceleration": (1.82, 3.35294, 4.2)[i], **attributes}
        write(folders.prediction[0] / f"file{i}.h5", "reconstruction", volume(i) + 1, **attributes)
    return folders


@pytest.mark.parametrize(("rate", "names"), [(4, [1, 2]), (2, [0]), (4.2, [2]), (4.5, [2]), (3.9, [2])])
def test_the_acceleration_asked_for_counts_or_one_near_it(drawn: EvaluateConfig, rate, names) -> None:
    results = evaluate(changed(drawn, acceleration=rate))
    assert [result.name for result in results] == [f"file{i}.h5" for i in names]


def test_what_became_of_a_mask_is_not_its_acceleration(drawn: EvaluateConfig) -> None:
    with pytest.raises(InputError, match=r"found unknown at 2×, unknown at 4.2×, unknown at 4×; choose"):
        evaluate(changed(drawn, acceleration=3.35294))


def test_the_table_has_a_row_for_each_acceleration_that_was_asked_for(drawn: EvaluateConfig) -> None:
    results = evaluate(drawn)
    assert [r.acceleration for r in results] == [1.82, 3.35294, 4.2]
    rows = [line.split(" | ")[1:4] for line in markdown_table(results).splitlines()[2:5]]
    assert rows == [["all", "3", "9"], ["all at 2×", "1", "3"], ["all at 4×", "1", "3"]]
    assert "all at" not in markdown_table(results[1:])


def test_reconstructions_at_several_accelerations_are_found_by_them(tmp_path: Path) -> None:
    paths = simulate(tmp_path / "data", SimulateConfig(volumes=8, slices=1, shape=(24, 20), coils=(3,)))
    masks = MaskConfig(accelerations=(2.0, 4.0), center_fractions=(0.3, 0.2))
    settings = {"sampling": masks, "maps": "low-resolution", "quiet": True}
    reports = reconstruct(ReconstructConfig(tuple(paths), tmp_path / "mine", "zero-filled", **settings))
    for rate in (2, 4):
        config = EvaluateConfig(tmp_path / "data", (tmp_path / "mine",), acceleration=rate, quiet=True)
        assert [v.name for v in evaluate(config)] == [r.file for r in reports if r.asked_acceleration == rate]
