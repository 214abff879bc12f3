"""Bundles: weights across the gap, checked, and nothing but what the manifest lists."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from hubserver import Hub, hub, safetensors_bytes  # noqa: F401  (hub is a fixture)

from wsipipe import bundles, weights
from wsipipe.errors import ConfigError, WeightsError

SOURCE = weights.Source(name="thing", repo="makers/thing", licence="MIT", page="https://page")


def make(hub: Hub, target: Path) -> Path:  # noqa: F811
    data = safetensors_bytes({"a": torch.arange(1000.0)})
    hub.add(
        "makers/thing",
        {"model.safetensors": data, "LICENSE": "do as you like", "README.md": "# thing"},
        commit="a" * 40,
    )
    bundles.write_bundle([bundles.pull(SOURCE)], target)
    return target


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another machine: no network, an empty cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_bundle_carries_weights_and_licence(hub: Hub, monkeypatch, tmp_path) -> None:  # noqa: F811
    bundle = make(hub, tmp_path / "b.tar")
    before = weights.fetch(SOURCE)
    elsewhere(monkeypatch, tmp_path)
    entries = bundles.read_bundle(bundle)
    assert [file.name for file in entries[0].files] == ["model.safetensors", "LICENSE", "README.md"]
    after = weights.fetch(SOURCE)
    assert (after.sha256, after.revision) == (before.sha256, before.revision)
    assert (after.path.parent / "LICENSE").read_text() == "do as you like"
    bundles.read_bundle(bundle)  # twice is as once


def rewrite(bundle: Path, change) -> Path:
    """The bundle with its members passed through `change(name, data) -> [(info, data)]`."""
    target = bundle.with_name("changed.tar")
    with tarfile.open(bundle) as old, tarfile.open(target, "w") as new:
        for member in old:
            data = old.extractfile(member).read()
            for info, content in change(member.name, data):
                if isinstance(info, str):
                    info = tarfile.TarInfo(info)
                    info.size = len(content)
                new.addfile(info, io.BytesIO(content))
    return target


def test_changed_byte_is_refused(hub: Hub, monkeypatch, tmp_path) -> None:  # noqa: F811
    bundle = make(hub, tmp_path / "b.tar")
    changed = rewrite(
        bundle,
        lambda name, data: [(name, data[:-1] + b"!" if name.endswith("safetensors") else data)],
    )
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(WeightsError, match="wrong checksum"):
        bundles.read_bundle(changed)
    assert weights.cached(SOURCE) is None


def test_missing_member_is_refused(hub: Hub, monkeypatch, tmp_path) -> None:  # noqa: F811
    bundle = make(hub, tmp_path / "b.tar")
    changed = rewrite(
        bundle, lambda name, data: [] if name.endswith("safetensors") else [(name, data)]
    )
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(WeightsError, match="lacks"):
        bundles.read_bundle(changed)


@pytest.mark.parametrize("stranger", ["../../evil", "/etc/evil", "files/makers/thing/x/../../y"])
def test_stranger_in_the_tar_is_refused(hub: Hub, monkeypatch, tmp_path, stranger) -> None:  # noqa: F811
    bundle = make(hub, tmp_path / "b.tar")
    changed = rewrite(
        bundle,
        lambda name, data: (
            [(name, data), (stranger, b"x")] if "LICENSE" in name else [(name, data)]
        ),
    )
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match="does not list"):
        bundles.read_bundle(changed)


def test_link_under_a_listed_name_is_refused(hub: Hub, monkeypatch, tmp_path) -> None:  # noqa: F811
    bundle = make(hub, tmp_path / "b.tar")

    def swap(name: str, data: bytes):
        if not name.endswith("LICENSE"):
            return [(name, data)]
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        return [(link, b"")]

    changed = rewrite(bundle, swap)
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match="does not list"):
        bundles.read_bundle(changed)


@pytest.mark.parametrize(
    ("field", "value"),
    [("repo", "../../home"), ("commit", ".."), ("revision", "../x"), ("repo", "a/../b")],
)
def test_manifest_that_leads_out_of_the_cache_is_refused(
    hub: Hub,  # noqa: F811
    monkeypatch,
    tmp_path,
    field: str,
    value: str,
) -> None:
    bundle = make(hub, tmp_path / "b.tar")

    def poison(name: str, data: bytes):
        if name == "manifest.json":
            manifest = json.loads(data)
            manifest["encoders"][0][field] = value
            data = json.dumps(manifest).encode()
        return [(name, data)]

    changed = rewrite(bundle, poison)
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises(ConfigError, match="names files that no repository has"):
        bundles.read_bundle(changed)


def test_what_is_not_a_bundle(tmp_path) -> None:
    text = tmp_path / "x.tar"
    text.write_text("hello")
    with pytest.raises(ConfigError, match="not a whole bundle"):
        bundles.read_bundle(text)
    with pytest.raises(ConfigError, match="no bundle"):
        bundles.read_bundle(tmp_path / "none.tar")


def test_half_a_bundle(hub: Hub, monkeypatch, tmp_path) -> None:  # noqa: F811
    bundle = make(hub, tmp_path / "b.tar")
    bundle.write_bytes(bundle.read_bytes()[:3000])
    elsewhere(monkeypatch, tmp_path)
    with pytest.raises((ConfigError, WeightsError)):
        bundles.read_bundle(bundle)
    assert weights.cached(SOURCE) is None
