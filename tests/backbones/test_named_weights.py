"""Weights by name: of timm, of Hugging Face, by URL; with a network, with a cache, and without either."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub import constants, errors

from backbones import CheckpointError, build_backbone, published
from backbones.published import cached_file, fetch, is_published, nearest_published
from backbones.weights import read_checkpoint

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (4, 4, 8, 8)}


class Hub:
    """Stands for Hugging Face: repositories with their files, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, list[str]()
        self.repositories: dict[str, set[str]] = {}
        self.error: Exception | None = None

    def file(self, repository: str, name: str) -> Path:
        return self.folder / repository / name

    def download(self, repository: str, name: str, revision: str | None = None) -> str:
        self.requests.append(f"{repository}@{revision or 'main'}/{name}")
        if self.error is not None:
            raise self.error
        if name not in self.repositories.get(repository, set()):
            raise answer(errors.RemoteEntryNotFoundError)
        path = self.file(repository, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        network = build_backbone("convnext_tiny", **SMALL)
        safetensors.torch.save_file(network.state_dict(), path)
        return str(path)

    def cached(self, repository: str, name: str, revision: str | None = None) -> str | None:
        path = self.file(repository, name)
        return str(path) if path.exists() else None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", hub.cached)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(published, "getproxies", lambda: {"https": "a proxy, which finds the way"})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.mark.parametrize(
    "source, repository, file",
    [
        ("convnext_tiny.fb_in1k", "timm/convnext_tiny.fb_in1k", "model.safetensors"),
        ("timm/convnext_tiny.fb_in1k", "timm/convnext_tiny.fb_in1k", "model.safetensors"),
        ("hf-hub:timm/convnext_tiny.fb_in1k", "timm/convnext_tiny.fb_in1k", "model.safetensors"),
        ("hf://timm/convnext_new.of_tomorrow", "timm/convnext_new.of_tomorrow", "model.safetensors"),
        ("facebook/dinov3-convnext-tiny-pretrain-lvd1689m",) * 2 + ("pytorch_model.bin",),
        ("hf://facebook/EUPE-ConvNeXt-T/files/EUPE.pt", "facebook/EUPE-ConvNeXt-T", "files/EUPE.pt"),
        ("laion/CLIP-convnext_base", "laion/CLIP-convnext_base", "open_clip_pytorch_model.bin"),
    ],
)
def test_a_name_is_downloaded_once(source: str, repository: str, file: str, hub: Hub) -> None:
    hub.repositories[repository] = {file}
    assert is_published(source)
    assert cached_file(source) is None
    network = build_backbone("convnext_tiny", **SMALL, weights=source)
    assert network.load_report is not None
    assert (network.load_report.source, network.load_report.missing) == (source, ())
    assert hub.requests[-1] == f"{repository}@main/{file}"
    asked = len(hub.requests)
    constants.HF_HUB_OFFLINE = True
    assert fetch(source) == cached_file(source) == hub.file(repository, file)
    assert len(hub.requests) == asked


def test_a_revision_is_asked_for(hub: Hub) -> None:
    hub.repositories["a/b"] = {"model.safetensors"}
    fetch("a/b@v2")
    assert hub.requests == ["a/b@v2/model.safetensors"]


def test_a_path_that_exists_is_a_path(hub: Hub) -> None:
    for name in ("convnext_tiny.fb_in1k", "a/b"):
        Path(name).parent.mkdir(exist_ok=True)
        torch.save(build_backbone("convnext_tiny", **SMALL).state_dict(), name)
        assert not is_published(name)
        build_backbone("convnext_tiny", **SMALL, weights=name)
    assert hub.requests == []
    for name in ("work_dirs/epoch_1.pth", "./a/b", "a/absent", "/a/b/c", "a/b/c", "best.pth", "notes", "swin_tiny"):
        assert not is_published(name), name


@pytest.mark.parametrize(
    "source, message",
    [
        ("convnext_tiny.fb_in1kk", "timm has no weights of that name; nearest: convnext_tiny.fb_in1k"),
        ("timm/convnext_tny.fb_in1k", "nearest: convnext_tiny.fb_in1k, .*hf://timm/convnext_tny.fb_in1k takes it"),
        ("convnext_base", "choose one of convnext_base.clip_laion2b, "),
        ("hf://convnext_tiny", "write hf://OWNER/REPOSITORY"),
        ("convnext_tny.fb_in1k", "does not exist; nearest: convnext_tiny.fb_in1k"),
        ("some/where", "some/where has no model.safetensors and no pytorch_model.bin .*hf://some/where/FILE"),
    ],
)
def test_a_name_that_is_not_there(source: str, message: str, hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(source)
    assert "\n" not in str(caught.value)


def answer(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    error.args = ("an answer\nof several lines",)
    return error


@pytest.mark.parametrize(
    "error, message",
    [
        (answer(errors.GatedRepoError), "accept its terms on https://huggingface.co/timm/.*'hf auth login'"),
        (answer(errors.RepositoryNotFoundError), "no such file here, nor timm/convnext_tiny.fb_in1k at Hugging Face"),
        (answer(errors.RevisionNotFoundError), "no such file here, nor timm/convnext_tiny.fb_in1k at Hugging Face"),
        (answer(errors.LocalEntryNotFoundError), r"does not give it \(an answer\)"),
        (answer(errors.HfHubHTTPError), r"does not give it \(an answer\)"),
        (OSError("disk\nfull"), r"does not give it \(disk\)"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
def test_what_the_hub_may_answer(error: Exception, message: str, hub: Hub) -> None:
    hub.error = error
    with pytest.raises(CheckpointError, match=message) as caught:
        fetch("convnext_tiny.fb_in1k")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reason", ["HF_HUB_OFFLINE is set", "its name cannot be resolved"])
def test_without_a_network_the_line_to_fetch_it_by_hand(reason: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*address: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(published, "getproxies", dict)
    monkeypatch.setattr(published.socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", reason.startswith("HF"))
    with pytest.raises(CheckpointError) as caught:
        fetch("hf://a/b@v1")
    assert str(caught.value) == (
        f"checkpoint 'hf://a/b@v1' is no file here, not in the cache, and Hugging Face does not give it ({reason}): "
        "where there is a network run 'hf download a/b model.safetensors --revision v1 --local-dir DIR', and give "
        "weights=DIR/model.safetensors"
    )
    assert hub.requests == []


def test_weights_of_another_size_are_refused(hub: Hub) -> None:
    hub.repositories["timm/convnext_base.fb_in1k"] = {"model.safetensors"}
    with pytest.raises(CheckpointError, match=r"'convnext_base\.fb_in1k' is of another network"):
        build_backbone("convnext_tiny", **{**SMALL, "dims": (8, 8, 8, 8)}, weights="convnext_base.fb_in1k")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []
    state = tmp_path / "served.pth"
    torch.save(build_backbone("convnext_tiny", **SMALL).state_dict(), state)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(404 if "absent" in self.path else 200)
            self.send_header("Content-Length", str(state.stat().st_size))
            self.end_headers()
            self.wfile.write(state.read_bytes())

        def log_message(self, *message: Any) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", requests
    running.shutdown()


def test_a_url_is_downloaded_by_one_process(hub: Hub, server: tuple[str, list[str]]) -> None:
    address, requests = server
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(fetch, [f"{address}/a.pth"] * 8))
    assert (len(found), requests) == (1, ["/a.pth"])
    assert build_backbone("convnext_tiny", **SMALL, weights=f"{address}/a.pth").load_report.missing == ()
    with pytest.raises(CheckpointError, match=rf"cannot be read: .*404.*: curl -L -O {address}/absent.pth, and give"):
        fetch(f"{address}/absent.pth")


def test_the_names_near_a_path_that_is_absent() -> None:
    assert nearest_published("epoch_10") == ""
    assert "convnext_tiny.fb_in1k" in nearest_published("convnxt_tiny.fb_in1k")
