"""What the site takes from elsewhere in the repository, and its mathematics.

Data cards, results, notebooks and the files about the project become pages from where they lie. Links are
written as they work in the repository, and rewritten here. TeX becomes MathML when the site is built, and
browsers draw that by themselves: no script, no network.
"""

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
# in the repository: on the site
PAGES = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks/reading.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
PATTERNS = ("data/*.md", "benchmarks/results/*.md", "benchmarks/results/*.png", "benchmarks/results/*.json")
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
MATH = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)


def on_files(files, config):
    """Add the pages that lie outside ``docs/``."""
    found = {str(path.relative_to(ROOT)) for pattern in PATTERNS for path in ROOT.glob(pattern)}
    config.extra["places"] = PAGES | {path: path for path in found}
    for path, place in config.extra["places"].items():
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        config.extra["places"][f"notebooks/{path.name}"] = f"notebooks/{path.stem}.md"
        for name, content in _notebook(path).items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def _notebook(path):
    """The page of a notebook, with what its cells printed, and its pictures."""
    text, resources = MarkdownExporter().from_filename(str(path))
    pictures = {f"{path.stem}_{name}": content for name, content in resources["outputs"].items()}
    for name in resources["outputs"]:
        text = text.replace(f"]({name})", f"]({path.stem}_{name})")
    return {f"{path.stem}.md": text, **pictures}


def on_page_markdown(markdown, page, config, files):
    """Point links at the pages of the site; one to a file that is not on it keeps its text alone."""
    places = config.extra["places"]
    origin = {place: path for path, place in places.items() if place != "index.md"}
    here = origin.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def place(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link[1]))
        if not (ROOT / target).exists():
            return link[1]  # mkdocs will say that it is broken
        found = places.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(found) is None:
            return f"MISSING:{found}"
        return posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".")

    return re.sub(r"\[([^\]]*)\]\(MISSING:[^)]*\)", r"\1", LINK.sub(place, markdown))


def on_page_content(content, page, config, files):
    """TeX to MathML, and what docstrings write in reStructuredText to what it means."""

    def mathml(found: re.Match[str]) -> str:
        return convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")

    content = re.sub(r":(?:class|func|meth|mod):(?=<code>)", "", MATH.sub(mathml, content))
    # a table in a docstring is drawn as it was typed
    return re.sub(r"<p>(=+ [= ]+\n.*?)</p>", _as_typed, content, flags=re.DOTALL).replace("<p>::</p>", "")


def _as_typed(table):
    return f"<pre><code>{re.sub('</?code>', '``', table[1])}</code></pre>"
