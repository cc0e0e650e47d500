"""The wheel: what it holds, what it says of itself, and that the command runs out of it."""

import email
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from monarch_sciml import __version__

ROOT = Path(__file__).parents[1]
SOURCES = (".py", ".cpp", ".h", "py.typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built with what is installed; `make wheel` builds in isolation, for an empty environment."""
    out = tmp_path_factory.mktemp("dist")
    # away from the checkout, where setuptools would leave its build folder
    tree = tmp_path_factory.mktemp("tree")
    for item in ("monarch_sciml", "pyproject.toml", "README.md", "LICENSE"):
        (tree / item).symlink_to(ROOT / item)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = out.iterdir()
    return found


def test_wheel_holds_every_source_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "monarch_sciml"
    expected = {str(p.relative_to(ROOT)) for p in package.rglob("*") if p.name.endswith(SOURCES)}
    assert names == expected
    assert wheel.name == f"monarch_sciml-{__version__}-py3-none-any.whl"


def test_wheel_metadata_names_dependencies_licence_and_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f"monarch_sciml-{__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        assert b"monarch-sciml = monarch_sciml.cli:main" in archive.read(f"{info}/entry_points.txt")
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "MIT"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(required) == len(project["dependencies"])


def test_an_extra_has_what_the_notebooks_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = " ".join(project["optional-dependencies"]["notebooks"])
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        if "import sklearn" in (text := notebook.read_text()) or "from sklearn" in text:
            assert "scikit-learn" in extra
    assert ".[notebooks]" in (ROOT / "notebooks" / "README.md").read_text()


def test_command_runs_out_of_the_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    data = tmp_path / "a.h5"
    options = ["--out", str(data), "--samples", "1", "--resolution", "8", "--end-time", "1", "--quiet"]
    code = (
        "import sys, monarch_sciml; print(monarch_sciml.__file__);"
        "from monarch_sciml.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "pde", "generate", *options]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "site/monarch_sciml/__init__.py"), str(data)]
    assert data.exists()
