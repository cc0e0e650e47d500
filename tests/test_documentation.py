"""The documentation holds: its code runs, its commands parse, its links lead somewhere, its names exist."""

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import monarch_sciml
from monarch_sciml import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("data/*.md"))]
PAGES += sorted(ROOT.glob("benchmarks/**/*.md"))
# the others need files that a reader has and the tests do not
RUN = [DOCS / "index.md", DOCS / "quickstart.md", *sorted((DOCS / "how-to").glob("*.md"))]
# what torchrun sets, for one process
TORCHRUN = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """(first line, text) of every block in one of the languages."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in BLOCK.finditer(text)
        if found[1] in languages
    ]


def commands(page: Path) -> list[str]:
    text = "\n".join(text.replace("\\\n", " ") for _, text in blocks(page, "", "bash", "sh"))
    return [line for line in text.splitlines() if line.startswith("monarch-sciml ")]


@pytest.mark.parametrize("page", RUN, ids=name)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.stem == "multi-gpu":
        for variable, value in TORCHRUN.items():
            monkeypatch.setenv(variable, value)
    scope = {"__name__": "__main__"}
    try:
        for line, text in blocks(page, "python"):
            # empty lines in front, so that an error names the line of the page
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), scope)
    finally:
        if dist.is_initialized():  # where the page ended early
            dist.destroy_process_group()


@pytest.mark.parametrize("page", [p for p in PAGES if p not in RUN and blocks(p, "python")], ids=name)
def test_python_compiles_and_imports(page):
    for line, text in blocks(page, "python"):
        compile(text, f"{page}:{line}", "exec")
        for module, names in re.findall(r"^from (monarch_sciml[\w.]*) import (.*)$", text, re.MULTILINE):
            for each in names.split("#")[0].split(","):
                assert hasattr(importlib.import_module(module), each.split(" as ")[0].strip()), each


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name)
def test_commands_parse(page):
    for command in commands(page):
        words = shlex.split(command, comments=True)[1:]
        assert "..." not in words
        if words != ["bench", "--help"]:
            cli._parse(words)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", DOCS / "quickstart.md", DOCS / "how-to" / "pde-data.md"], ids=name
)
def test_runs_that_are_evaluated_were_trained(page):
    """On the same page, before, each into a directory of its own."""
    made = []
    for command in commands(page):
        match shlex.split(command, comments=True)[1:]:
            case ["pde" | "mri", "train", *words]:
                made.append(words[words.index("--out") + 1])
            case ["pde", "evaluate", *words]:
                wanted = words[words.index("--runs") + 1 : words.index("--out")]
                assert wanted
                assert {*wanted} <= {*made}
    assert len({*made}) == len(made) > 1


def test_commands_are_found_and_a_wrong_one_is_refused():
    assert len(commands(DOCS / "quickstart.md")) > 4
    with pytest.raises(SystemExit):
        cli._parse(["pde", "train", "--no-such-option", "1"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_targets_exist(page):
    text = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_numbers_at_the_start_of_a_line_are_those_of_a_list(page):
    """A sentence that goes on with "2018." in a new line becomes a list, which loses the number."""
    lines = BLOCK.sub("", page.read_text())
    numbers = [int(number) for number in re.findall(r"^ *(\d+)[.)] ", lines, re.MULTILINE)]
    for before, number in zip([0, *numbers], numbers, strict=False):
        assert number in (1, before + 1), f"{number}."


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=name)
def test_the_reference_names_modules_that_exist(page):
    for module in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
        assert importlib.util.find_spec(module), module


def test_every_package_has_a_page_of_reference():
    pages = {page.stem for page in (DOCS / "api").glob("*.md")} - {"index"}
    assert pages == {p.parent.name for p in (ROOT / "monarch_sciml").glob("*/__init__.py")}


def test_every_page_can_be_reached():
    navigation = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[-:] ([\w/-]+\.md)$", navigation, re.MULTILINE))
    written = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    written |= {str(card.relative_to(ROOT)) for card in ROOT.glob("data/*.md")}
    written |= {f"notebooks/{book.stem}.md" for book in ROOT.glob("notebooks/*.ipynb")}
    assert listed == written | {"contributing.md", "changelog.md", "security.md"}


def test_what_is_loaded_cannot_run_code():
    numbers = {"allow_pickle": False}
    safe = {"torch.load": {"weights_only": True}, "np.load": numbers, "np.lib.format.read_array": numbers}
    found = []
    for path in (ROOT / "monarch_sciml").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not modules & {"pickle", "marshal", "shelve", "dill", "joblib", "yaml"}, path
        for call in nodes:
            if isinstance(call, ast.Call) and (function := ast.unparse(call.func)) in safe:
                given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
                assert safe[function].items() <= given.items(), f"{path}: {ast.unparse(call)}"
                found.append(function)
    assert set(found) == set(safe)


def test_one_version_everywhere():
    version = monarch_sciml.__version__
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("mkdocs", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theory = (tmp_path / "theory" / "index.html").read_text()
    assert "<math" in theory
    assert 'class="arithmatex"' not in theory  # no equation was left to a script
