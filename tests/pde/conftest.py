"""Fixtures of the PDE tests."""

from pathlib import Path

import pytest
from trajectory_files import WRITERS


@pytest.fixture(params=WRITERS)
def any_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same trajectories, once in every format."""
    return WRITERS[request.param][0](tmp_path / request.param)
