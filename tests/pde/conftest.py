"""Fixtures of the PDE tests."""

from pathlib import Path

import pytest
from trajectory_files import WRITERS
from waves import save_waves


@pytest.fixture(params=WRITERS)
def any_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same trajectories, once in every format."""
    return WRITERS[request.param][0](tmp_path / request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to train on one step ahead."""
    return save_waves(tmp_path_factory.mktemp("data") / "waves.npy")


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with enough frames for protocol A."""
    return save_waves(tmp_path_factory.mktemp("data") / "long.npy", frames=13)
