"""Models on the Hugging Face hub: what a run leaves is a hub folder, and a repository loads like one."""

import dataclasses
import hashlib
import http.server
import inspect
import json
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import SETTINGS
from torch import Tensor, nn
from waves import save_waves

from monarch_sciml import InputError, cli, mri, pde
from monarch_sciml.mri.models import SliceReconstructor
from monarch_sciml.pde import FramePredictor
from monarch_sciml.training import read_json
from monarch_sciml.training.hub import Pretrained, find_model
from monarch_sciml.training.run import NOT_COMPARED

TINY = pde.ModelConfig("fno-monarch", grid=(12, 10), channels=1, n_in=1, modes=4, width=4, layers=1)
FILES = ["README.md", "config.json", "model.safetensors"]
CLASSES: dict[str, type[Pretrained]] = {"pde": FramePredictor, "mri": SliceReconstructor}
COLUMNS = {"pde": ["one_step", "rollout"], "mri": ["nmse", "psnr", "ssim"]}
KINDS = pytest.mark.parametrize("kind", ["pde", "mri"])


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Finished trainings, on files whose names must not spoil a card."""
    folder = tmp_path_factory.mktemp("hub")
    waves = save_waves(folder / "odd: `name` --- # ü.npy")
    settings: dict[str, Any] = {**SETTINGS, "epochs": 2}
    scans, small = folder / "Mrs Miller", mri.SimulateConfig(volumes=2, slices=1, shape=(24, 20), coils=(3,))
    mri.simulate(scans, small)
    for number, file in enumerate(sorted(scans.glob("*.h5"))):
        file.rename(file.with_name(f"miller_{number}.h5"))
    masks = mri.MaskConfig(accelerations=(2.0,), center_fractions=(0.3,))
    training = mri.TrainConfig(
        scans, folder / "mri", "msense", masks, n_test=1, epochs=1, device="cpu", quiet=True
    )
    return {"pde": pde.train(pde.TrainConfig(waves, folder / "pde", **settings)), "mri": mri.train(training)}


def read_card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])  # type: ignore[index]


@KINDS
def test_a_run_is_a_hub_folder(runs, kind):
    folder = runs[kind] / "model"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    from_run, from_folder = (CLASSES[kind].from_pretrained(path) for path in (runs[kind], str(folder)))
    assert same(from_run, from_folder)
    card = read_card(folder)
    for heading in ("Use", "Training", "Limits", "Licence", "Citation"):
        assert f"\n## {heading}\n" in card
    header, *_, row = (line.split(",") for line in (runs[kind] / "metrics.csv").read_text().split())
    last = dict(zip(header, row, strict=True))
    assert all(f" | {float(last[name]):.4g} |\n" in card for name in COLUMNS[kind])
    facts = front_matter(card)
    assert facts["library_name"] == "monarch_sciml"
    assert facts["license"] == "unknown"
    assert {"monarch_sciml", from_run.config.kind} < {*facts["tags"]}
    [result] = facts["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [float(last[name]) for name in COLUMNS[kind]]
    assert facts["metrics"] == {"pde": ["relative_l2"], "mri": COLUMNS["mri"]}[kind]


@KINDS
def test_a_card_gives_nothing_away(runs, kind):
    """Neither folders of this machine nor the names of scans, which may be those of patients."""
    card = read_card(runs[kind] / "model")
    assert str(runs[kind].parent) not in card
    assert not re.search("(?i)miller", card)
    assert "/" not in (runs[kind] / "model" / "config.json").read_text()
    described = {
        "pde": "* Data: odd: name --- # ü.npy; trained on the first 6 trajectories, 6 frames, 16 × 16; held",
        "mri": "* Data: fully sampled k-space, random sampling at 2×; trained on 1 slices of 1 volumes; held",
    }
    assert described[kind] in card


def scan() -> tuple[Tensor, Tensor, Tensor]:
    """k-space, pattern and maps."""
    maps = torch.randn(1, 3, 24, 20, dtype=torch.complex64)
    pattern = torch.rand(1, 1, 20) < 0.5
    return torch.randn(1, 3, 24, 20, dtype=torch.complex64) * pattern, pattern, maps


@KINDS
def test_what_a_card_tells_to_do_works(runs, kind):
    """Its Python runs, and its commands parse, that of the training to the settings of the training."""
    card = read_card(runs[kind] / "model")
    [python] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    kspace, pattern, maps = scan()
    scope = {"kspace": kspace, "pattern": pattern, "maps": maps, "frames": torch.randn(2, 1, 1, 16, 16)}
    exec(python.replace("PATH", str(runs[kind] / "model")), scope)
    assert scope["image" if kind == "mri" else "prediction"].isfinite().all()
    commands = re.findall(r"```\nmonarch-sciml (.*?)\n```", card)
    assert len(commands) == {"pde": 1, "mri": 2}[kind]
    *_, again = (cli._parse(command.split()) for command in commands)
    assert isinstance(again, (cli.Pde, cli.Mri))
    settings = json.loads(json.dumps(dataclasses.asdict(again.command), default=str))  # type: ignore[arg-type]
    before = read_json(runs[kind] / "config.json")["config"]
    assert {k: v for k, v in settings.items() if k not in NOT_COMPARED} == {
        k: v for k, v in before.items() if k not in NOT_COMPARED
    }


def test_the_hub_reads_the_card(runs):
    """The library's own reading of it."""
    hub = pytest.importorskip("huggingface_hub")
    for run in runs.values():
        card = hub.ModelCard.load(run / "model" / "README.md")
        assert card.data.library_name == "monarch_sciml"
        assert card.data.eval_results
        assert all(isinstance(result.metric_value, float) for result in card.data.eval_results)


def test_a_card_without_a_run_claims_nothing(tmp_path):
    TINY.build().save_pretrained(tmp_path, license="mit")
    facts = front_matter(read_card(tmp_path))
    assert facts["license"] == "mit"
    assert not facts.keys() & {"model-index", "metrics", "datasets"}
    assert "## Training\n\nNot recorded.\n" in read_card(tmp_path)
    # monarch_sciml is on no registry
    assert "With monarch_sciml, installed from its source repository by `python -m pip" in read_card(tmp_path)
    assert "pip install monarch" not in read_card(tmp_path)
    assert "Of the weights: mit." in read_card(tmp_path)


def test_what_is_not_a_run(tmp_path, runs):
    with pytest.raises(InputError, match=r"a file config.json; found none"):
        TINY.build().save_pretrained(tmp_path / "a", run=tmp_path)
    with pytest.raises(InputError, match=r"a run directory .*; found a config.json of another kind"):
        TINY.build().save_pretrained(tmp_path / "a", run=runs["pde"] / "model")
    (tmp_path / "config.json").write_text('{"config": {}}')
    for content in ("", "epoch,loss\n", "epoch,rollout\n1,nan\n2,word\n", "epoch,rollout\n1,0.5\n2\n"):
        (tmp_path / "metrics.csv").write_text(content)
        with pytest.raises(InputError, match=r"the table of a training, .*; restore it or train anew"):
            TINY.build().save_pretrained(tmp_path / "a", run=tmp_path)
    assert not (tmp_path / "a").exists()


class FakeHub:
    """``huggingface_hub`` as far as it is used: repositories are folders in memory."""

    def __init__(self, files: Path | None = None, error: Exception | None = None):
        self.files, self.error, self.calls = files, error, []

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.calls.append((repo_id, options))
        if self.error:
            raise self.error
        return str(self.files)

    def HfApi(self, **options: Any) -> "FakeHub":
        self.calls.append(("api", options))
        return self

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", repo_id, options))
        if self.error:
            raise self.error

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", repo_id, options))

    def upload_folder(self, *, folder_path: str, **options: Any) -> Any:
        sent = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        self.calls.append(("upload_folder", sent, options))
        return SimpleNamespace(commit_url="https://somewhere/commit/1")


@pytest.fixture
def fake(monkeypatch, tmp_path) -> FakeHub:
    hub = FakeHub(tmp_path / "snapshot")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    return hub


def test_a_repository_is_downloaded_and_nothing_but_the_model(fake):
    model = TINY.build().eval()
    model.save_pretrained(fake.files)
    assert same(FramePredictor.from_pretrained("me/model", revision="v1"), model)
    [(name, options)] = fake.calls
    assert name == "me/model"
    assert options["revision"] == "v1"
    assert sorted(options["allow_patterns"]) == FILES


@pytest.mark.parametrize(
    "local", ["me/waves", "me/run", Path("me/nothing"), "./me", "/me/x", "a/b/c", "me", ""]
)
def test_a_folder_never_needs_the_hub(fake, local):
    TINY.build().save_pretrained("me/waves")
    TINY.build().save_pretrained("me/run/model")
    if str(local) in ("me/waves", "me/run"):
        assert isinstance(FramePredictor.from_pretrained(local), FramePredictor)
    else:
        with pytest.raises(InputError, match="an exported model in"):
            find_model(local)
    assert not fake.calls


def test_what_the_hub_says_is_passed_on(fake):
    fake.error = RuntimeError("404 Client Error.\nRepository Not Found for url: …")
    expected = (
        r"a folder me/model, or a repository .*; found no folder, and RuntimeError: 404 Client Error\.; "
    )
    with pytest.raises(InputError, match=expected) as error:
        FramePredictor.from_pretrained("me/model")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"a repository me/model to write to; found RuntimeError: 404"):
        TINY.build().push_to_hub("me/model")
    with pytest.raises(InputError, match=r"a repository such as someone/name; found model; put"):
        TINY.build().push_to_hub("model")


def test_without_the_hub_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"huggingface_hub, to reach the hub; found .*; pip install"):
        FramePredictor.from_pretrained("me/model")
    with pytest.raises(InputError, match=r"huggingface_hub, to reach the hub"):
        TINY.build().push_to_hub("me/model")


def test_push_sends_the_folder(fake, runs):
    model = FramePredictor.from_pretrained(runs["pde"])
    address = model.push_to_hub(
        "me/waves", private=True, token="t", branch="dev", run=runs["pde"], license="mit"
    )
    assert address == "https://somewhere/commit/1"
    api, repository, branch, (_, sent, options) = fake.calls
    assert api[1]["token"] == "t"
    assert repository == ("create_repo", "me/waves", {"private": True, "exist_ok": True})
    assert branch == ("create_branch", "me/waves", {"branch": "dev", "exist_ok": True})
    assert options["repo_id"] == "me/waves"
    assert options["revision"] == "dev"
    assert sorted(sent) == FILES
    assert sent["model.safetensors"] == (runs["pde"] / "model" / "model.safetensors").read_bytes()
    card = sent["README.md"].decode()
    assert 'from_pretrained("me/waves")' in card
    assert 'license: "mit"' in card
    assert "model-index" in card


@pytest.mark.parametrize("method", ["save_pretrained", "from_pretrained", "push_to_hub"])
def test_the_methods_are_called_as_those_of_the_hub(method):
    """Same names and defaults wherever ours has a parameter that theirs has."""
    hub = pytest.importorskip("huggingface_hub")
    theirs, ours = (
        inspect.signature(getattr(each, method)).parameters for each in (hub.ModelHubMixin, Pretrained)
    )
    assert next(name for name in ours if name != "self") in theirs
    for name in ours.keys() & theirs.keys() - {"self", "commit_message"}:
        assert ours[name].kind == theirs[name].kind, name
        assert ours[name].default == theirs[name].default, name
    assert ours.keys() - theirs.keys() <= {"run", "license"}


def test_layers_in_a_model_of_the_hub_s_own_class(tmp_path, monkeypatch):
    """As the documentation shows it."""
    pytest.importorskip("huggingface_hub")
    page = Path(__file__).parents[1] / "docs" / "how-to" / "share-models.md"
    text = re.findall(r"^```py\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)[-1]
    monkeypatch.chdir(tmp_path)
    scope = {"torch": torch, "__name__": "page"}
    exec(compile(text, str(page), "exec"), scope)
    assert same(scope["net"], scope["again"])


class Server(http.server.ThreadingHTTPServer):
    """Enough of the hub's protocol for a download: the list of files, and each of them."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = files, []


class Handler(http.server.BaseHTTPRequestHandler):
    """``/api/models/…`` and ``/…/resolve/…``."""

    server: Server  # type: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self, body: bool = True) -> None:
        self.server.asked.append(self.path)
        commit, file = "c" * 40, self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/me/waves"):
            listed = [{"rfilename": name} for name in self.server.files]
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": "0" * 40}
                for n, c in self.server.files.items()
            ]
            info = {"id": "me/waves", "sha": commit, "siblings": listed, "private": False, "tags": []}
            status, content = 200, json.dumps(tree if "/tree/" in self.path else info).encode()
        elif self.path.startswith("/me/waves/resolve/") and file in self.server.files:
            status, content = 200, self.server.files[file]
        else:
            status, content = 404, b"{}"
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Not a word."""


def test_a_download_over_http(runs, tmp_path, monkeypatch):
    """The real library against a server of our own, which also offers what nobody should fetch."""
    hub = pytest.importorskip("huggingface_hub")
    files = {name: (runs["pde"] / "model" / name).read_bytes() for name in FILES}
    server = Server({**files, "weights.pkl": b"never", "train.py": b"never"})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(hub.constants, name, value)
    monkeypatch.chdir(tmp_path)
    try:
        model = FramePredictor.from_pretrained("me/waves")
        with pytest.raises(
            InputError, match=r"a folder me/ways, or a repository .*; found no folder, and Repo"
        ):
            FramePredictor.from_pretrained("me/ways")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert same(model, FramePredictor.from_pretrained(runs["pde"]))
    assert not [path for path in server.asked if path.endswith((".pkl", ".py"))]
