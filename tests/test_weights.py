"""Weights: pinned, checked, resumed, offline, gated; against a hub on loopback."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hubserver import Hub, hub, safetensors_bytes  # noqa: F401  (hub is a fixture)

from wsipipe import weights
from wsipipe.errors import GatedEncoderError, OutputError, WeightsError

STATE = {"a.weight": torch.arange(60_000, dtype=torch.float32).reshape(200, 300)}
SOURCE = weights.Source(
    name="thing", repo="makers/thing", page="https://hub/makers/thing", licence="CC-BY-NC-ND-4.0"
)


def publish(hub: Hub, **more: bytes | str) -> bytes:  # noqa: F811
    data = safetensors_bytes(STATE)
    hub.add("makers/thing", {"model.safetensors": data, **more}, commit="a" * 40)
    return data


def test_download_is_checked_named_and_remembered(hub: Hub) -> None:  # noqa: F811
    data = publish(hub)
    found = weights.fetch(SOURCE)
    assert found.path.read_bytes() == data
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.revision == "a" * 40
    asked = len(hub.requests)
    assert weights.fetch(SOURCE) == found
    assert len(hub.requests) == asked, "the cache is used without asking"


def test_huggingface_hub_finds_what_we_cached(hub: Hub) -> None:  # noqa: F811
    from huggingface_hub import try_to_load_from_cache

    publish(hub)
    found = weights.fetch(SOURCE)
    theirs = try_to_load_from_cache(
        "makers/thing", "model.safetensors", cache_dir=weights.hub_cache()
    )
    assert theirs == str(found.path)


def test_we_find_what_huggingface_hub_cached(hub: Hub) -> None:  # noqa: F811
    from huggingface_hub import hf_hub_download

    publish(hub)
    theirs = hf_hub_download(
        "makers/thing", "model.safetensors", cache_dir=weights.hub_cache(), endpoint=hub.url
    )
    asked = len(hub.requests)
    assert weights.fetch(SOURCE).path == Path(theirs)
    assert len(hub.requests) == asked


def test_pinned_revision_is_asked_for(hub: Hub) -> None:  # noqa: F811
    publish(hub)
    weights.fetch(replace(SOURCE, revision="a" * 40))
    assert f"HEAD /makers/thing/resolve/{'a' * 40}/model.safetensors" in hub.requests
    with pytest.raises(WeightsError, match=r"no revision b{40}"):
        weights.fetch(replace(SOURCE, revision="b" * 40))


def test_second_choice_of_file_is_taken_where_the_first_is_missing(hub: Hub) -> None:  # noqa: F811
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    hub.add("makers/thing", {"pytorch_model.bin": buffer.getvalue()})
    assert weights.fetch(SOURCE).path.name == "pytorch_model.bin"


def test_repository_without_the_file(hub: Hub) -> None:  # noqa: F811
    hub.add("makers/thing", {"README.md": "hello"})
    with pytest.raises(WeightsError, match=r"has none of model\.safetensors"):
        weights.fetch(SOURCE)


def test_cut_download_goes_on_within_the_process(hub: Hub) -> None:  # noqa: F811
    # The client reads 10 MB at a time; what it has read is not asked for again.
    data = safetensors_bytes({"a": torch.zeros(3_200_000)})
    hub.add("makers/thing", {"model.safetensors": data}, commit="a" * 40)
    hub.cut_after = [12_000_000]
    assert weights.fetch(SOURCE).path.read_bytes() == data
    assert [asked.split("-")[0] for asked in hub.ranges] == ["bytes=10485760"]


def test_download_goes_on_after_the_process_died(hub: Hub) -> None:  # noqa: F811
    data = publish(hub)
    blobs = weights.repo_folder("makers/thing") / "blobs"
    blobs.mkdir(parents=True)
    name = hashlib.sha256(data).hexdigest()
    (blobs / f"{name}.incomplete").write_bytes(data[:77_777])
    assert weights.fetch(SOURCE).path.read_bytes() == data
    assert hub.ranges[0].startswith("bytes=77777-")
    assert not list(blobs.glob("*.incomplete"))


def test_wrong_checksum_is_refused_and_deleted(hub: Hub) -> None:  # noqa: F811
    publish(hub)
    hub.corrupt = True
    with pytest.raises(WeightsError, match="wrong checksum"):
        weights.fetch(SOURCE)
    hub.corrupt = False
    assert weights.fetch(SOURCE).sha256 == hashlib.sha256(safetensors_bytes(STATE)).hexdigest()


def test_damaged_cache_is_noticed(hub: Hub) -> None:  # noqa: F811
    publish(hub)
    blob = weights.fetch(SOURCE).path.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(1, 1))
    with pytest.raises(WeightsError, match="wrong checksum"):
        weights.fetch(SOURCE)


def test_checksum_of_the_source_is_held(hub: Hub) -> None:  # noqa: F811
    publish(hub)
    with pytest.raises(WeightsError, match=r"expected 0{64}"):
        weights.fetch(replace(SOURCE, sha256="0" * 64))


def test_parallel_first_downloads_do_not_race(hub: Hub) -> None:  # noqa: F811
    data = publish(hub)
    hub.delay_s = 1.0
    program = (
        "from wsipipe import weights;"
        "print(weights.fetch(weights.Source(name='thing', repo='makers/thing')).sha256)"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    digests = [worker.communicate(timeout=60)[0].strip() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert set(digests) == {hashlib.sha256(data).hexdigest()}
    assert hub.downloads() == 1, "one downloads, the others wait for it"


def test_gated_repository_names_page_login_and_licence(hub: Hub) -> None:  # noqa: F811
    publish(hub)
    hub.repos["makers/thing"].gated = True
    with pytest.raises(GatedEncoderError) as caught:
        weights.fetch(replace(SOURCE, gated=True))
    message = str(caught.value)
    assert "https://hub/makers/thing" in message
    assert "hf auth login" in message
    assert "CC-BY-NC-ND-4.0" in message
    assert caught.value.exit_code == 3


def test_token_opens_a_gated_repository_and_is_not_sent_to_storage(
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = publish(hub)
    hub.repos["makers/thing"].gated = True
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    # The server's storage refuses requests that carry a token.
    assert weights.fetch(SOURCE).path.read_bytes() == data


def test_missing_network_is_told_in_seconds(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    begin = time.monotonic()
    with pytest.raises(WeightsError, match="cannot be reached") as caught:
        weights.fetch(SOURCE)
    assert time.monotonic() - begin < 8
    assert "--bundle" in caught.value.remedy
    assert caught.value.exit_code == 3


def test_offline_uses_the_cache_and_nothing_else(
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(hub)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE"):
        weights.fetch(SOURCE)
    assert hub.requests == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    weights.fetch(SOURCE)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert weights.fetch(SOURCE).revision == "a" * 40
    assert len(hub.requests) == asked


def test_read_only_cache_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    publish(hub)
    weights.fetch(SOURCE)
    monkeypatch.setenv("WSIPIPE_CACHE", "/proc/nowhere")
    assert weights.fetch(SOURCE).revision == "a" * 40


def test_unpublished_weights_name_the_way() -> None:
    closed = weights.Source(name="rudolfv", public="none", licence="proprietary")
    with pytest.raises(WeightsError, match="not published") as caught:
        weights.fetch(closed)
    assert "--weights FILE" in caught.value.remedy
    by_hand = weights.Source(name="ctranspath", url="https://drive/x", sha256="7c" * 32)
    with pytest.raises(WeightsError) as caught:
        weights.fetch(by_hand)
    assert "https://drive/x" in caught.value.remedy
    assert "7c" * 32 in caught.value.remedy


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("/tmp/wsipipe-was-run",)


def test_a_file_that_runs_code_is_refused(tmp_path) -> None:
    file = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1), "b": _Bomb()}, file)
    with pytest.raises(WeightsError, match="can run code") as caught:
        weights.read_state(file, "thing")
    assert "convert pickled" in caught.value.remedy
    assert not Path("/tmp/wsipipe-was-run").exists()


def test_nested_checkpoints_are_unwrapped_as_told(tmp_path) -> None:
    file = tmp_path / "model.pth"
    torch.save({"epoch": 3, "teacher": {"backbone.x": torch.ones(2)}}, file)
    assert list(weights.read_state(file, "thing", ("model", "teacher"))) == ["backbone.x"]
    with pytest.raises(WeightsError, match="no tensors"):
        weights.read_state(file, "thing")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", b"\x10\0\0\0\0\0\0\0{broken}"]
)
def test_damaged_files_are_told_as_such(tmp_path, content: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        weights.read_state(file, "thing")


def test_fit_lists_every_problem() -> None:
    target = torch.nn.Linear(3, 2)
    with pytest.raises(WeightsError) as caught:
        weights.check_fit("thing", target, {"weight": torch.zeros(2, 4), "gamma": torch.zeros(2)})
    message = str(caught.value)
    assert "1 missing (bias)" in message
    assert "1 unexpected (gamma)" in message
    assert "weight is (2, 4), must be (2, 3)" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_cache_that_cannot_be_written_is_not_blamed_on_the_network(hub: Hub, monkeypatch, tmp_path):  # noqa: F811
    publish(hub)
    (tmp_path / "locked").mkdir(mode=0o500)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "locked"))
    with pytest.raises(OutputError, match="cannot be written"):
        weights.fetch(SOURCE)


def test_full_disk_is_not_blamed_on_the_network(hub: Hub, monkeypatch):  # noqa: F811
    import errno

    from wsipipe import _hub

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publish(hub)
    monkeypatch.setattr(_hub, "_resume", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        weights.fetch(SOURCE)
    assert caught.value.exit_code == 4
