"""Models that travel: a folder, or a repository of the Hugging Face hub, of safetensors, JSON and a card.

``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are called as those of ``huggingface_hub``'s
``PyTorchModelHubMixin``; that package is imported only when something is fetched or sent.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
import textwrap
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from monarch_sciml import __version__
from monarch_sciml.errors import InputError
from monarch_sciml.training.export import CARD, CONFIG, WEIGHTS, load_weights, save_model
from monarch_sciml.training.model_card import About, model_card
from monarch_sciml.training.run import read_json

__all__ = ["Pretrained", "find_model", "read_settings"]

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
# beside the settings in config.json: which class reads it, and what wrote it
CLASS, VERSION = "architecture", "monarch_sciml_version"
# of what is built one by one
DEEPEST = {"layers": 1000, "cascades": 1000, "pools": 10}
T = TypeVar("T")


class Pretrained(nn.Module, ABC):
    """A network that is known by its settings: what subclasses need to be saved, loaded and shared.

    They have ``config``, a frozen dataclass, and define ``from_config``, ``about``, and ``trained`` if the
    weights to save are not all of their own.
    """

    config: Any

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A new model of these settings. Raises ``InputError`` for settings that make none."""

    @abstractmethod
    def about(self) -> About:
        """What the model card says of it."""

    @property
    def trained(self) -> nn.Module:
        """Whose state is saved."""
        return self

    def save_pretrained(
        self, save_directory: str | Path, *, run: str | Path | None = None, license: str = "unknown"
    ) -> Path:
        """Write ``config.json``, ``model.safetensors`` and a model card, ``README.md``, into a folder.

        What else lies there stays. A process that is killed leaves the earlier model or none.

        Args:
            save_directory: the folder, made if need be.
            run: the directory of the training, whose settings and last held-out figures the card then tells.
            license: of the weights, an identifier of the hub such as "mit"; whoever trained them decides.

        Raises:
            InputError: nothing can be written there, or ``run`` is no training.
        """
        return self._save(Path(save_directory), run, license, "PATH")

    def _save(self, folder: Path, run: str | Path | None, license: str, source: str) -> Path:
        content = {CLASS: type(self).__name__, VERSION: __version__, **dataclasses.asdict(self.config)}
        card = model_card(
            self.about(), source=source, run=None if run is None else Path(run), license=license
        )
        return save_model(folder, self.trained, content, card)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None
    ) -> Self:
        """A saved model, on the CPU and in evaluation mode. Executes nothing that it reads.

        Args:
            pretrained_model_name_or_path: a folder, a run directory, or, as a string, a repository of the hub
                such as "someone/fno-monarch".
            revision: a branch, tag or commit of the repository; a commit cannot change later.

        Raises:
            InputError: no model there, a damaged one, or that of another class.
        """
        folder = find_model(pretrained_model_name_or_path, revision=revision)
        content = read_json(folder / CONFIG)
        if not isinstance(content, dict):
            raise InputError(f"the settings of a model in {folder / CONFIG}", "a list", "check the path")
        written_by = content.pop(CLASS, cls.__name__)  # older exports do not say it
        content.pop(VERSION, None)
        if written_by != cls.__name__:
            remedy = "load it with that class, or check the path"
            raise InputError(f"a {cls.__name__} in {folder}", f"a {written_by}", remedy)
        try:
            with torch.device("meta"):  # without memory: settings may ask for any
                _check_size(cls.from_config(content).trained, folder)
            with torch.random.fork_rng(devices=[]):  # building draws weights that are replaced at once
                model = cls.from_config(content)
        except InputError as error:
            expected, found, _ = error.args
            raise InputError(expected, found, f"check {folder / CONFIG}") from None
        # whatever a layer says of them
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            found = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError("settings that make a model", found, f"check {folder / CONFIG}") from error
        load_weights(folder, model.trained)
        return model.eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a model of monarch_sciml",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        run: str | Path | None = None,
        license: str = "unknown",
    ) -> str:
        """Send what ``save_pretrained`` writes to a repository, made if need be; the address of the commit.

        Args:
            repo_id: "someone/name".
            private: whether a new repository is hidden; the hub's default for the account otherwise.
            token: of the account; by default that of ``hf auth login``.
            branch: to write to; the main one by default.
            commit_message, run, license: told with it; the last two as for ``save_pretrained``.

        Raises:
            InputError: no ``huggingface_hub``, or the hub refuses; a ``run`` that is none.
        """
        if not REPOSITORY.fullmatch(repo_id):
            raise InputError("a repository such as someone/name", repo_id, "put the account in front")
        hub = _hub()
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), run, license, repo_id)
            try:
                api = hub.HfApi(token=token, library_name="monarch_sciml", library_version=__version__)
                api.create_repo(repo_id, private=private, exist_ok=True)
                if branch is not None:
                    api.create_branch(repo_id, branch=branch, exist_ok=True)
                done = api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=branch
                )
            except Exception as error:
                remedy = "check the name, the network, and `hf auth whoami`"
                raise InputError(f"a repository {repo_id} to write to", _first_line(error), remedy) from error
        return str(done.commit_url)


def find_model(source: str | Path, *, revision: str | None = None) -> Path:
    """The folder of an exported model: ``source`` itself, its ``model/``, or a download of a repository.

    Only a string that names no folder here is looked for on the hub; only settings, weights and the card are
    fetched, into ``huggingface_hub``'s cache. Raises ``InputError`` if there is none.
    """
    folder = Path(source)
    if (
        folder / "model" / CONFIG
    ).is_file():  # a run directory, whose own config.json is that of the training
        return folder / "model"
    if folder.exists() or isinstance(source, Path) or not REPOSITORY.fullmatch(source):
        if not (folder / CONFIG).is_file():
            found = "none" if folder.is_dir() else "no such folder"
            remedy = "train to the end, or check the path"
            raise InputError(f"an exported model in {folder}", found, remedy)
        return folder
    hub = _hub()
    try:
        return Path(
            hub.snapshot_download(
                source,
                revision=revision,
                allow_patterns=[CONFIG, WEIGHTS, CARD],
                library_name="monarch_sciml",
                library_version=__version__,
            )
        )
    except Exception as error:  # there are many ways for a download to fail
        expected = f"a folder {source}, or a repository of that name on the hub"
        remedy = "check the name, the revision, and the network"
        raise InputError(expected, f"no folder, and {_first_line(error)}", remedy) from error


def _check_size(model: nn.Module, folder: Path) -> None:
    """Refuse settings that ask for more than the weights beside them hold."""
    tensors = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    # two bytes are the least for a number that was saved in lower precision than the model's
    file, needed = folder / WEIGHTS, sum(value.numel() * min(2, value.element_size()) for value in tensors)
    found = file.stat().st_size if file.is_file() else None
    if found is not None and found < needed:
        expected = f"a safetensors file with weights that fit the configuration in {folder}"
        raise InputError(expected, f"{found:,} of {needed:,} bytes", "keep the two files together")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        remedy = "pip install huggingface_hub, or download the folder and pass its path"
        raise InputError("huggingface_hub, to reach the hub", "it is not installed", remedy) from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def read_settings(kind: type[T], content: Mapping[str, Any]) -> T:
    """A dataclass of numbers, words and sizes out of JSON; whole numbers are 1 to 65536.

    Raises ``InputError`` for a setting that is missing, unknown, of another type, or takes for ever to build.
    """
    kinds = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if wrong := (content.keys() - fields.keys()) | (needed - content.keys()):
        missing = ", ".join(sorted(wrong & needed)) or "none"
        found = f"missing: {missing}; unknown: {', '.join(sorted(wrong - needed)) or 'none'}"
        raise InputError(f"the settings of a model ({', '.join(fields)})", found, "check the path")
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    for name, value in values.items():
        if name in DEEPEST and isinstance(value, int) and value > DEEPEST[name]:
            raise InputError(f"{name} up to {DEEPEST[name]}", _short(value), "check the settings")
        if not _fits(value, kinds[name]):
            expected = f"{name} of the type {kinds[name]}".replace("typing.", "").replace(
                "<class 'int'>", "int"
            )
            raise InputError(expected, _short(content[name]), "check the settings")
    return kind(**values)


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 60)


def _fits(value: Any, kind: Any) -> bool:
    inner = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if typing.get_origin(kind) is Literal:
        return value in inner
    if inner:  # a tuple
        wanted = len(value) if inner[-1] is ... and isinstance(value, tuple) and value else len(inner)
        return isinstance(value, tuple) and len(value) == wanted and all(_fits(v, inner[0]) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    return type(value) is kind and (kind is not int or 1 <= value <= 65536)
