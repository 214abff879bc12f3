"""`wsipipe encoders` and `wsipipe pull` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hubserver import Hub
from published import published_state, shrink

from wsipipe.encoders import resolve

KEYS = {
    *("name", "aliases", "kind", "dim", "params", "tile_px", "mpp", "pooling"),
    *("licence", "commercial", "gated", "cached"),
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wsipipe", *arguments], capture_output=True, text=True, check=False
    )


@pytest.fixture
def phikon_hub(hub: Hub) -> Hub:
    """One block of Phikon: what these tests need is the protocol, not the size."""
    from hubserver import safetensors_bytes

    card = resolve("phikon")
    state = published_state(shrink(card, 1))
    files = {"model.safetensors": safetensors_bytes(state), "LICENSE": "non-commercial"}
    hub.add("owkin/phikon", files, commit=card.revision)
    return hub


def test_json_is_a_list_with_the_keys_of_the_contract(hub: Hub) -> None:
    done = run("encoders", "--json")
    rows = json.loads(done.stdout)
    assert done.returncode == 0
    assert len(rows) > 55
    for row in rows:
        assert set(row) == KEYS
        assert row["params"] is not None or row["name"] == "virchow2g"
    by_name = {row["name"]: row for row in rows}
    assert by_name["virchow2"]["dim"] == 2560
    assert by_name["virchow2-cls"]["dim"] == 1280
    assert by_name["texture"]["cached"] is True
    assert by_name["uni"]["gated"] is True
    assert hub.requests == [], "listing asks nobody"


def test_commercial_hides_what_a_product_may_not_use(hub: Hub) -> None:
    names = {row["name"] for row in json.loads(run("encoders", "--commercial", "--json").stdout)}
    assert {"texture", "h-optimus-0", "midnight-12k", "dinov2-vitl14"} <= names
    assert not names & {"phikon", "uni", "virchow2", "conch", "kaiko-vits16", "mstar", "rudolfv"}


def test_available_shows_what_runs_now(phikon_hub: Hub) -> None:
    assert [r["name"] for r in json.loads(run("encoders", "--available", "--json").stdout)] == [
        "texture"
    ]
    assert run("pull", "phikon").returncode == 0
    now = [r["name"] for r in json.loads(run("encoders", "--available", "--json").stdout)]
    assert now == ["texture", "phikon"]


def test_table_and_card_are_for_reading(hub: Hub) -> None:
    table = run("encoders")
    assert "virchow2-cls" in table.stdout
    assert "0.5" in table.stdout
    card = run("encoders", "pathoduet")
    assert "not normalised" in card.stdout
    assert "CC-BY-NC-4.0" in card.stdout
    unknown = run("encoders", "virchow3")
    assert unknown.returncode == 2
    assert "Did you mean" in unknown.stderr


def test_pull_twice_downloads_once_and_bundle_crosses_the_gap(
    phikon_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = run("pull", "phikon", "--bundle", str(tmp_path / "p.tar"), "--json")
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)["cache"][0]
    assert {file["name"] for file in entry["files"]} == {"model.safetensors", "LICENSE"}
    assert "Owkin non-commercial" in done.stderr
    assert run("pull", "phikon").returncode == 0
    assert phikon_hub.downloads() == 1
    monkeypatch.setenv("HF_HOME", str(tmp_path / "other"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = run("pull", "phikon")
    assert missing.returncode == 3
    assert "HF_HUB_OFFLINE" in missing.stderr
    assert run("pull", "--from", str(tmp_path / "p.tar")).returncode == 0
    assert run("pull", "phikon").returncode == 0


def test_pull_fills_another_cache(phikon_hub: Hub, tmp_path: Path) -> None:
    assert run("pull", "phikon", "--dest", str(tmp_path / "shared")).returncode == 0
    assert len(list((tmp_path / "shared").rglob("model.safetensors"))) == 1
    assert not (tmp_path / "hf").exists()


def test_pull_says_why_it_cannot(phikon_hub: Hub) -> None:
    phikon_hub.repos["owkin/phikon"].gated = True
    phikon_hub.add("mahmoodlab/uni", {"pytorch_model.bin": b"x"}, gated=True)
    gated = run("pull", "uni", "texture")
    assert gated.returncode == 3
    assert "https://huggingface.co/MahmoodLab/UNI" in gated.stderr
    assert "hf auth login" in gated.stderr
    assert "texture: nothing to fetch" in gated.stderr
    by_hand = run("pull", "ctranspath")
    assert by_hand.returncode == 3
    assert "7c998680060c8743" in by_hand.stderr
    assert run("pull").returncode == 2
    nothing = run("pull", "texture", "--bundle", "none.tar")
    assert nothing.returncode == 2
    assert "Nothing to put into none.tar" in nothing.stderr
    assert run("pull", "phikon", "--from", "x.tar").returncode == 2
