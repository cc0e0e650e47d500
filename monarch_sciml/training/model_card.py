"""The model card: a README whose first lines the Hugging Face hub reads, the rest people.

It names no paths, and of files only what ``About.data`` returns: a card is meant to be published.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from monarch_sciml import __version__
from monarch_sciml.training.run import last_row, read_config, read_json

__all__ = ["About", "count", "count_parameters", "model_card"]


@dataclass(frozen=True)
class About:
    """What a family of models says of itself."""

    title: str
    summary: str
    """Markdown: what goes in, what comes out, how big it is."""
    task: tuple[str, str]
    """Of the hub's metadata: the type of the task and its name."""
    tags: tuple[str, ...]
    usage: str
    """Python, with {source} where the folder or the repository is named."""
    command: str
    """That of the training, such as ``pde train``; each of its settings is an option."""
    metrics: Mapping[str, tuple[str, str]]
    """Column of ``metrics.csv`` → (type, name to show)."""
    limits: tuple[str, ...]
    data: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, str]]
    """(settings of the training, its record of the data) → name and description of what it was trained on
    and of what was held out, as far as they may be published: keys ``name``, ``training``, ``held out``."""
    shell: str = ""
    """A command to use it, with {source} likewise."""
    notice: str = ""


def count(number: int, thing: str) -> str:
    """ "1 layer", "2 layers"."""
    return f"{number} {thing}{'s' * (number != 1)}"


def count_parameters(model: nn.Module) -> int:
    """Real numbers that are trained: a complex parameter counts twice."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters() if p.requires_grad)


def model_card(about: About, *, source: str, run: Path | None, license: str) -> str:
    """The card of a model, with the settings and figures of the training in the directory ``run``, if given.

    Raises ``InputError`` when that is no run directory, or it has no ``metrics.csv``.
    """
    facts: dict[str, Any] = {
        "library_name": "monarch_sciml",
        "license": license,
        "tags": ["monarch_sciml", *about.tags],
    }
    training = "Not recorded."
    if run is not None:
        settings, options, data, environment = _record(run)
        described = {key: _plain(value) for key, value in about.data(settings, data).items()}
        row = last_row(run)
        figures = [
            {"type": kind, "name": name, "value": value}
            for column, (kind, name) in about.metrics.items()
            if math.isfinite(value := row.get(column, math.nan))
        ]
        facts["metrics"] = list(dict.fromkeys(figure["type"] for figure in figures))
        result = {
            "task": dict(zip(("type", "name"), about.task, strict=True)),
            "dataset": {"type": described["name"], "name": f"{described['name']}: {described['held out']}"},
            "metrics": figures,
        }
        facts["model-index"] = [{"name": about.title, "results": [result]}]
        training = _training(about, options, environment, described, row, figures)
    shell = about.shell.format(source=source)
    parts = [
        f"---\n{_yaml(facts)}---",
        f"# {about.title}",
        about.notice,
        about.summary,
        f"## Use\n\n{INSTALL}\n\n```python\n{about.usage.format(source=source)}\n```",
        f"```\n{shell}\n```" if shell else "",
        f"## Training\n\n{training}",
        "## Limits\n\n" + "\n".join(f"* {limit}" for limit in about.limits),
        f"## Licence\n\n{_licence(license)}",
        CITATION,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _training(
    about: About,
    options: str,
    environment: Mapping[str, Any],
    described: Mapping[str, str],
    row: Mapping[str, float],
    figures: list[dict[str, Any]],
) -> str:
    """Data, figures and the command that repeats it."""
    versions = ", ".join(f"{n} {environment[n]}" for n in ("monarch_sciml", "torch") if n in environment)
    lines = [
        f"* Data: {described['name']}; trained on {described['training']}; "
        f"held out: {described['held out']}.",
        f"* {count(int(row['epoch']), 'epoch')} in {row['seconds']:.0f} s on "
        f"{environment.get('device', 'an unknown device')}, {versions or 'versions not recorded'}.",
        "",
        "| held out, after the last epoch | |",
        "|---|---:|",
        *(f"| {figure['name']} | {figure['value']:.4g} |" for figure in figures),
        "",
        "Nothing was selected by these figures. The command that trains it again:",
        "",
        f"```\nmonarch-sciml {about.command} --data DATA --out RUN {options}\n```",
    ]
    return "\n".join(lines)


def _record(run: Path) -> tuple[dict[str, Any], str, dict[str, Any], dict[str, Any]]:
    """Settings, the same as options, data and environment."""
    settings, content = read_config(run), read_json(run / "config.json")
    data, environment = (
        part if isinstance(part := content.get(key), dict) else {} for key in ("data", "environment")
    )
    return settings, str(content.get("options", "…")), data, environment


def _plain(text: str) -> str:
    """One line that Markdown and YAML leave as it is, whatever a file is called."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() and c not in "`|<>[]*\\" else " " for c in text).split())


def _yaml(value: Any, indent: str = "") -> str:
    """Mappings, lists, strings and numbers; every string quoted as in JSON, which YAML reads."""
    if isinstance(value, Mapping):
        lines = ""
        for key, inner in value.items():
            nested = isinstance(inner, (Mapping, list)) and inner
            lines += f"{indent}{key}:" + (
                f"\n{_yaml(inner, indent + '  ')}" if nested else f" {_yaml(inner)}\n"
            )
        return lines
    if isinstance(value, list) and value:
        items = (_yaml(item, indent + "  ") for item in value)
        return "".join(f"{indent}- {item.lstrip().rstrip()}\n" for item in items)
    return json.dumps(value, ensure_ascii=False)


def _licence(license: str) -> str:
    if license == "unknown":
        weights = (
            "The weights have none yet: whoever trained them may choose one, and name it here and above."
        )
    else:
        weights = f"Of the weights: {license}."
    return (
        f"{weights} Mind the terms of the training data. The code of monarch_sciml is under the MIT licence."
    )


INSTALL = "With monarch_sciml, installed from its source repository by `python -m pip install .`:"

CITATION = f"""## Citation

Trained with monarch_sciml {__version__}. Monarch matrices are due to T. Dao et al.:

```bibtex
@inproceedings{{dao2022monarch,
  title     = {{Monarch: Expressive Structured Matrices for Efficient and Accurate Training}},
  author    = {{Dao, Tri and Chen, Beidi and Sohoni, Nimit S. and Desai, Arjun and Poli, Michael and Grogan,
               Jessica and Liu, Alexander and Rao, Aniruddh and Rudra, Atri and R{{\\'e}}, Christopher}},
  booktitle = {{Proceedings of the 39th International Conference on Machine Learning}},
  year      = {{2022}},
}}
```"""
