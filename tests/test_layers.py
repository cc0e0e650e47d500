"""The house rules: who may import whom, how light the import is, what is public, how long a file may be."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "monarch_sciml"

# each part may import itself and what stands here; the package's own __init__ may import what is light
FOUNDATION = {"errors"}
OPERATORS = FOUNDATION | {"kernels", "linalg"}
ALLOWED = {
    "errors": set(),
    "kernels": FOUNDATION,
    "linalg": FOUNDATION | {"kernels"},
    "nn": OPERATORS,
    "training": OPERATORS | {"nn"},
    "pde": OPERATORS | {"nn", "training"},
    "mri": OPERATORS | {"nn", "training"},
    "benchmark": OPERATORS | {"nn", "training", "pde", "mri"},
    "cli": OPERATORS | {"nn", "training", "pde", "mri", "benchmark"},
    "__main__": {"cli"},
    "__init__": OPERATORS | {"nn"},
}
HEAVY = ["neuralop", "lightning", "matplotlib", "wandb", "sigpy", "scipy", "h5py", "tyro"]

MODULES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(".".join(f.parent.relative_to(ROOT).parts) for f in MODULES if f.name == "__init__.py")
FILES = [
    f for folder in ("monarch_sciml", "tests", "benchmarks") for f in sorted((ROOT / folder).rglob("*.py"))
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part(path: Path) -> str:
    """The first level below the package: ``nn`` for nn/spectral.py, ``cli`` for cli.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_parts(source: str) -> set[str]:
    """Parts of the package that are imported anywhere in the source, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # `from monarch_sciml import nn` names the part behind the import
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {m.split(".")[1] for m in modules if m.startswith("monarch_sciml.")} - {"__version__"}
    return found


def test_imports_are_seen_wherever_they_stand():
    inner = "def f():\n    from monarch_sciml.mri import x"
    source = f"import monarch_sciml.pde.plots\nfrom monarch_sciml import nn\n{inner}"
    assert imported_parts(source) == {"pde", "nn", "mri"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_downwards(path):
    here = part(path)
    assert here in ALLOWED, f"say in tests/test_layers.py what {here} may import"
    above = imported_parts(path.read_text()) - ALLOWED[here] - {here}
    assert not above, f"{name(path)} imports {sorted(above)}"


def test_pde_and_mri_do_not_know_each_other_and_training_knows_neither():
    assert "mri" not in ALLOWED["pde"]
    assert "pde" not in ALLOWED["mri"]
    assert not {"pde", "mri"} & ALLOWED["training"]


def test_the_import_is_light():
    program = (
        "import json, sys, time, torch\n"
        "before = set(sys.modules)\n"
        "start = time.perf_counter()\n"
        "import monarch_sciml\n"
        "print(json.dumps([time.perf_counter() - start, sorted(set(sys.modules) - before)]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not run.stderr
    seconds, modules = json.loads(run.stdout)
    assert seconds < 0.5
    assert not [m for m in HEAVY if m in modules]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_say_what_they_are(package):
    module = importlib.import_module(package)
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, f"{package}.{public} has no docstring"
            assert thing.__module__.startswith("monarch_sciml"), (
                f"{package}.{public} belongs to another package"
            )


@pytest.mark.parametrize(
    "path", [f for f in MODULES if f.parent != PACKAGE and f.name == "__init__.py"], ids=name
)
def test_a_package_lists_its_public_names_once(path):
    lists = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    assert len(lists) == 1


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_exceeds_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
