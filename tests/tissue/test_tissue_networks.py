"""Networks that find tissue: cards, weights, the walk over the slide. Random weights throughout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hubserver import Hub, hub, safetensors_bytes  # noqa: F401  (a fixture)

import wsipipe as wp
from wsipipe.errors import ConfigError, MissingExtraError, WeightsError
from wsipipe.tissue import detect_tissue, networks, registry, tissue_settings
from wsipipe.tissue.cards import TISSUE_CARDS

torch = pytest.importorskip("torch")

SlideOf = Callable[..., wp.Slide]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    networks.locate_weights.cache_clear()
    torch.set_num_threads(1)


def published(name: str) -> dict[str, Any]:
    """A random checkpoint under the published keys."""
    card = TISSUE_CARDS[name]
    torch.manual_seed(0)
    state = networks.build_network(card).state_dict()
    if name == "hest":
        state = {f"model.{key}": value for key, value in state.items()}
        state["model.aux_classifier.0.weight"] = torch.zeros(1)
    return state


def torch_bytes(content: object) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class _Looks(torch.nn.Module):
    """Says tissue where the picture is not bright: a network whose answer is known."""

    def forward(self, x: Any) -> Any:
        dark = (0.9 - (x * 0.225 + 0.45).mean(1, keepdim=True)) * 400
        return torch.cat([-dark, dark], 1)


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint folder whose network is `_Looks`."""
    folder = tmp_path / "looks"
    folder.mkdir()
    card = {"architecture": "looks", "classes": 2, "tissue_classes": [1], "mpp": 4.0}
    (folder / "config.json").write_text(json.dumps(card))
    (folder / "model.safetensors").write_bytes(safetensors_bytes({"x": torch.zeros(1)}))
    monkeypatch.setattr(networks, "load_network", lambda card, located, device: _Looks())
    return folder


def test_the_walk_covers_the_slide_without_seams(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, looking: Path
) -> None:
    rgb = np.kron(section[0], np.ones((2, 2, 1), np.uint8))  # 1600 x 1200 at 4 µm: 5 x 4 squares
    found = detect_tissue(slide_of(rgb, 4.0), f"{looking}?weights={looking}/model.safetensors")
    truth = section[1]
    assert found.mask.shape == truth.shape
    assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.97
    assert found.downsample == (2, 2)
    assert found.settings["threshold"] == 0.5
    assert len(found.settings["weights_sha256"]) == 64


def test_a_checkpoint_folder_brings_its_own_weights(
    section: tuple[np.ndarray, np.ndarray], slide_of: SlideOf, looking: Path
) -> None:
    assert not detect_tissue(slide_of(section[0], 4.0), str(looking)).is_empty


def test_device_and_batch_do_not_change_the_identity(looking: Path) -> None:
    weights = f"{looking}/model.safetensors"
    base = tissue_settings(str(looking), weights=weights)
    assert tissue_settings(str(looking), weights=weights, batch=9, device="cpu") == base
    assert tissue_settings(str(looking), weights=weights, threshold=0.7) != base


@pytest.mark.parametrize(
    "name", [pytest.param("hest", marks=pytest.mark.full), "grandqc", "grandqc-artefacts"]
)
def test_published_layouts_come_through_the_hub(
    hub: Hub,  # noqa: F811
    slide_of: SlideOf,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(networks, "INPUT_PX", 256)  # a quarter of the time
    if name != "hest":
        pytest.importorskip("segmentation_models_pytorch")
    card = TISSUE_CARDS[name]
    state = published(name)
    content = {"state_dict": state} if card.unwrap else state
    hub.add(card.repo, {card.file: torch_bytes(content)})
    slide = slide_of(np.full((60, 60, 3), 200, np.uint8), card.mpp)
    found = detect_tissue(slide, name, device="cpu", min_tissue_mm2=0.0)
    assert found.method == name
    assert found.mask.shape == tuple(-(-60 // int(found.downsample[0])) for _ in range(2))
    assert (found.pen is not None) == (name == "grandqc-artefacts")
    assert found.settings == tissue_settings(name, min_tissue_mm2=0.0)


def test_the_published_deeplab_is_torchvisions() -> None:
    """Same keys and same numbers as torchvision's own network, whose `out` it returns."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    torch.manual_seed(0)
    whole = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=2, aux_loss=False)
    ours = networks.build_network(TISSUE_CARDS["hest"])
    ours.load_state_dict(whole.state_dict())
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), whole.eval()(x)["out"])


def test_weights_that_do_not_fit_are_refused(slide_of: SlideOf, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes({"backbone.conv1.weight": torch.zeros(3)}))
    slide = slide_of(np.full((20, 20, 3), 200, np.uint8), 1.0)
    with pytest.raises(WeightsError, match="do not fit"):
        detect_tissue(slide, "hest", weights=str(path))


def test_pickled_objects_are_refused(slide_of: SlideOf, tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": {}, "object": Path("x")}, path)
    slide = slide_of(np.full((20, 20, 3), 200, np.uint8), 1.0)
    with pytest.raises(WeightsError, match="not a plain state dict"):
        detect_tissue(slide, "hest", weights=str(path))


def test_numbers_that_are_not_finite_are_refused(
    slide_of: SlideOf, looking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.full((len(x), 2, *x.shape[2:]), float("nan"))

    monkeypatch.setattr(networks, "load_network", lambda *_: Broken())
    with pytest.raises(WeightsError, match="not finite"):
        detect_tissue(slide_of(np.full((20, 20, 3), 200, np.uint8), 4.0), str(looking))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"\[tissue\]"):
        networks.build_network(TISSUE_CARDS["grandqc"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"architecture": "unet", "clases": 2}, "clases"),
        ({"architecture": "unet"}, "classes"),
        ("{", "not JSON"),
    ],
)
def test_a_wrong_checkpoint_folder_is_named(tmp_path: Path, content: Any, says: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=says):
        registry.find_card(str(tmp_path))


@pytest.mark.parametrize("wrong", ["hest?treshold=0.5", "hest?threshold=2", "hest?batch=0"])
def test_wrong_settings_of_a_network_are_named(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"threshold|batch"):
        tissue_settings(wrong)


# --- plugins ------------------------------------------------------------------------------------


class HalfDetector:
    """A plugin that takes the left half."""

    mpp = 16.0

    def settings(self) -> dict[str, Any]:
        return {"version": 3}

    def __call__(self, rgb: np.ndarray, mpp_xy: tuple[float, float]) -> np.ndarray:
        assert mpp_xy == (16.0, 16.0)
        mask = np.zeros(rgb.shape[:2], bool)
        mask[:, : mask.shape[1] // 2] = True
        return mask


class _Entry:
    def __init__(self, name: str, loaded: object) -> None:
        self.name, self.value, self._loaded = name, "package:DETECTOR", loaded

    def load(self) -> object:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        _Entry("half", HalfDetector()),
        _Entry("broken", ImportError("no module named x")),
        _Entry("no-detector", object()),
    ]

    def found(*, group: str, name: str | None = None) -> list[_Entry]:
        assert group == "wsipipe.tissue"
        return [entry for entry in entries if name in (None, entry.name)]

    monkeypatch.setattr(registry, "entry_points", found)


@pytest.mark.usefixtures("plugins")
def test_a_plugin_is_a_method(slide_of: SlideOf) -> None:
    slide = slide_of(np.full((100, 200, 3), 200, np.uint8))
    found = detect_tissue(slide, "half")
    assert found.mask.shape == (50, 100)
    assert found.coverage(np.array([[0, 0, 200, 100]], float)).tolist() == [0.5]
    assert found.settings == {"method": "half", "version": 3}
    assert "half" in registry.method_names()


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("name", ["broken", "no-detector"])
def test_a_broken_plugin_breaks_nothing_but_itself(name: str) -> None:
    with pytest.raises(ConfigError, match=f"plugin {name}"):
        tissue_settings(name)
    assert tissue_settings("auto")["method"] == "auto"
