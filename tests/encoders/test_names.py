"""The grammar of names, and what must not be loaded to use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hubserver import Hub, safetensors_bytes

from wsipipe.encoders import check_card, create_encoder, list_encoders, resolve
from wsipipe.encoders.registry import recipes
from wsipipe.errors import (
    ConfigError,
    OffCardError,
    UnknownEncoderError,
    WeightsError,
    WsipipeError,
)

# Every tile and multimodal row that has to be there, by its canonical name.
MUST = {
    *("virchow", "virchow2", "h-optimus-0", "kaiko-vits16", "kaiko-vits8"),
    *("kaiko-vitb16", "kaiko-vitb8", "kaiko-vitl14", "uni", "phikon"),
    *("phikon-v2", "tissue-concepts", "hibou-b", "hibou-l", "pathoduet-he"),
    *("pathoduet-ihc", "remedis-50x1-m", "remedis-152x2-m", "beph", "beph-relpos"),
    *("virchow2g", "virchow2g-mini", "brow", "pluto", "rudolfv"),
    *("uni2-h", "conch", "conch-v1-5", "prov-gigapath", "h-optimus-1"),
    *("h0-mini", "midnight-12k", "openmidnight", "gpfm", "ctranspath"),
    *("chief-ctranspath", "lunit-dino-s8", "lunit-dino-s16", "lunit-bt", "lunit-swav"),
    *("lunit-mocov2", "musk", "plip", "quiltnet-b-32", "quiltnet-b-16"),
    *("quiltnet-b-16-pmb", "keep", "mstar", "pathorchestra", "genbio-pathfm"),
    *(
        "resnet50-imagenet",
        "resnet50-imagenet-full",
        "dinov2-vitl14",
        "dinov2-vitg14-reg",
        "dinov3-vitb16",
    ),
    *("dinov3-vitl16", "texture"),
}


def test_every_row_is_there() -> None:
    names = [card.name for card in list_encoders()]
    assert set(names) >= MUST
    assert len(names) == len(set(names))


def test_no_spelling_means_two_encoders() -> None:
    owner: dict[str, str] = {}
    for card in list_encoders():
        for spelling in {s.lower().replace("_", "-") for s in (card.name, *card.aliases)}:
            assert owner.setdefault(spelling, card.name) == card.name


@pytest.mark.parametrize("card", list_encoders(), ids=lambda card: card.name)
def test_aliases_lead_to_their_card(card) -> None:
    for spelling in (card.name, card.name.upper(), *card.aliases):
        assert resolve(spelling) is resolve(card.name)
    for other in card.alternatives.values():
        assert resolve(other).hub == card.hub


def test_rows_of_the_research_are_spelled_as_there() -> None:
    """Names and aliases against the list of facts, where it is at hand."""
    facts = Path(__file__).resolve().parents[3] / "shared" / "encoders.yaml"
    if not facts.is_file():
        pytest.skip("the list of facts is not here")
    import yaml

    later = {"atlas", "lunit-onco-fm", "gigapath-flash", "phaet", "mascaret", "digepath"}
    for row in yaml.safe_load(facts.read_text()):
        if row["kind"] == "slide" or row["name"] in later:
            continue
        card = resolve(row["name"])
        assert card.name == row["name"]
        for alias in row.get("aliases", []):
            assert resolve(alias) is card, alias
        if isinstance(row.get("params"), int):
            assert card.params == row["params"]
        if isinstance(row.get("dim"), int):
            assert card.dim == row["dim"]
        mean = (row.get("norm") or {}).get("mean")
        if row["name"] != "beph":  # two norms there
            assert card.mean == (tuple(mean) if mean else None)


def test_listing_and_resolving_load_no_torch() -> None:
    program = (
        "import sys; from wsipipe.encoders import list_encoders, resolve;"
        "list_encoders(); resolve('uni_v1');"
        "heavy = {'torch', 'timm', 'transformers', 'huggingface_hub'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_unknown_names_are_told_with_near_ones() -> None:
    with pytest.raises(UnknownEncoderError, match=r"Did you mean .*phikon") as caught:
        resolve("phikn")
    assert caught.value.exit_code == 2
    with pytest.raises(UnknownEncoderError, match="slide-level"):
        resolve("titan")
    with pytest.raises(UnknownEncoderError, match=r"no encoder file or folder|no file"):
        resolve("nowhere/encoder.py")
    with pytest.raises(UnknownEncoderError, match="vit_small"):
        resolve("timm:vit_smal_patch16_224")


def test_timm_with_random_weights_repeats_itself(tiles) -> None:
    name = "timm:vit_tiny_patch16_224?pretrained=false"
    state = torch.random.get_rng_state()
    one, two = create_encoder(name), create_encoder(name)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's randomness is untouched"
    assert torch.equal(one(tiles), two(tiles))
    assert one.identity() == two.identity()
    assert one.card.mpp is None
    assert one.card.folder == "timm-vit_tiny_patch16_224-pretrained-false"
    with pytest.raises(ConfigError, match="pretrained"):
        resolve("timm:vit_tiny_patch16_224?pooling=mean")


TINY = "vit_tiny_patch16_224"


def timm_repo(depth: int = 1) -> tuple[dict[str, bytes | str], dict]:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, depth=depth)
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "num_features": 192,
        "global_pool": "token",
        "model_args": {"depth": depth},
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.2, 0.2],
            "interpolation": "bicubic",
            "license": "mit",
        },
    }
    state = model.state_dict()
    return {"config.json": json.dumps(config), "model.safetensors": safetensors_bytes(state)}, state


def test_hub_repository_in_timm_format(hub: Hub, tiles) -> None:
    import timm

    files, state = timm_repo()
    hub.add("someone/model", files, commit="d" * 40)
    encoder = create_encoder("hf-hub:someone/model", precision="fp32")
    assert encoder.card.mean == (0.5, 0.4, 0.3)
    assert encoder.revision == "d" * 40
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1).eval()
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
    pixels = (
        torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
        - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    ) / 0.2
    with torch.no_grad():
        assert torch.allclose(encoder(tiles), model(pixels), atol=1e-5)
    with pytest.raises(WeightsError, match="no revision"):
        create_encoder(f"hf-hub:someone/model@{'e' * 40}")


def test_local_checkpoint_folder(tmp_path, tiles) -> None:
    files, _ = timm_repo()
    folder = tmp_path / "our-model"
    folder.mkdir()
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
    encoder = create_encoder(str(folder))
    assert encoder.card.name == "our-model"
    assert encoder(tiles).shape == (3, 192)
    assert len(encoder.identity()["weights_sha256"]) == 64
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="holds none of"):
        create_encoder(str(folder))
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="timm's format"):
        create_encoder(str(folder))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"architecture": "vit_of_next_year"}, "no architecture 'vit_of_next_year'"),
        ({"architecture": ["vit"]}, "no architecture"),
        ({"architecture": TINY, "model_args": {"depht": 1}}, "depht"),
        ({"architecture": TINY, "model_args": [1]}, "no model that timm can make"),
        ({"architecture": TINY, "input_size": [3, "a", "a"]}, "no model that timm can make"),
    ],
)
def test_odd_configurations_are_told(config: dict, complaint: str, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=complaint):
        resolve(str(tmp_path))


def test_a_configuration_may_leave_its_defaults_out(tmp_path) -> None:
    config = {"architecture": TINY, "pretrained_cfg": None, "model_args": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert resolve(str(tmp_path)).mean == (0.485, 0.456, 0.406)


ENCODER_FILE = """
import torch
import wsipipe

CARD = wsipipe.EncoderCard(name="means", dim=3, tile_px=224, mpp=0.5, mean=None, std=None)

class Means(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))

def build(card):
    return Means()
"""


def test_python_file(tmp_path, tiles) -> None:
    path = tmp_path / "means.py"
    path.write_text(ENCODER_FILE)
    encoder = create_encoder(str(path))
    expected = torch.from_numpy(tiles).float().mean((1, 2)) / 255
    assert torch.allclose(encoder(tiles), expected, atol=1e-6)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name")
    with pytest.raises(ConfigError, match="cannot be run: ModuleNotFoundError"):
        create_encoder(str(broken))
    empty = tmp_path / "empty.py"
    empty.write_text("")
    with pytest.raises(ConfigError, match="needs CARD"):
        create_encoder(str(empty))


def test_edited_python_file_is_read_again(tmp_path, tiles) -> None:
    path = tmp_path / "edited.py"
    path.write_text(ENCODER_FILE)
    before = create_encoder(str(path)).identity()
    path.write_text(ENCODER_FILE.replace("x.mean((2, 3))", "x.amax((2, 3))"))
    after = create_encoder(str(path))
    assert torch.allclose(after(tiles), torch.from_numpy(tiles).float().amax((1, 2)) / 255)
    assert after.identity() != before, "another file is another encoder"


def test_an_edit_of_the_same_size_within_a_second_counts(tmp_path, tiles) -> None:
    path = tmp_path / "edited.py"
    path.write_text(ENCODER_FILE.replace("x.mean((2, 3))", "x.amin((2, 3))"))
    create_encoder(str(path))
    stamp = path.stat()
    path.write_text(ENCODER_FILE.replace("x.mean((2, 3))", "x.amax((2, 3))"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = create_encoder(str(path))
    assert torch.allclose(after(tiles), torch.from_numpy(tiles).float().amax((1, 2)) / 255)
    assert [p.name for p in tmp_path.iterdir()] == ["edited.py"], "nothing is left beside the file"


def test_the_same_file_in_two_folders_is_two_modules(tmp_path, tiles) -> None:
    """An encoder file may load weights that lie beside it."""
    text = ENCODER_FILE.replace(
        "x.mean((2, 3))",
        "x.mean((2, 3)) * float(pathlib.Path(__file__).with_name('factor').read_text())",
    )
    found = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "same.py").write_text("import pathlib\n" + text)
        (folder / "factor").write_text(str(number))
        found.append(create_encoder(str(folder / "same.py"))(tiles))
    assert torch.allclose(found[1], 2 * found[0])


def test_off_card_values_must_be_asked_for() -> None:
    uni = resolve("uni")
    assert check_card(uni, None, None) == (0.5, 224)
    assert check_card(uni, 0.5, 224) == (0.5, 224)
    with pytest.raises(OffCardError, match=r"1 µm/px instead of 0\.5"):
        check_card(uni, 1.0, None)
    with pytest.raises(OffCardError, match="256 px instead of 224") as caught:
        check_card(uni, None, 256)
    assert "--allow-off-card" in caught.value.remedy
    assert check_card(uni, 1.0, 256, allow_off_card=True) == (1.0, 256)
    hibou = resolve("hibou")
    with pytest.raises(OffCardError, match="name no resolution"):
        check_card(hibou, None, None)
    assert check_card(hibou, 0.25, None) == (0.25, 224)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (120.0, 110.0, 100.0), "std": (50.0, 50.0, 50.0)},
        {"mean": (0.5, 0.5, 0.5), "std": None},
        {"dim": 0},
        {"mpp": 50.0},
        {"name": "/"},
    ],
)
def test_impossible_cards_are_refused(wrong: dict) -> None:
    from wsipipe.encoders import EncoderCard

    good = {"name": "x", "dim": 1, "tile_px": 8, "mpp": 0.5, "mean": None, "std": None}
    with pytest.raises(ConfigError, match="Encoder card"):
        EncoderCard(**{**good, **wrong})


def test_hub_weights_missing_names_the_way(hub: Hub) -> None:
    with pytest.raises(WsipipeError, match="has no repository owkin/phikon") as caught:
        create_encoder("phikon")
    assert caught.value.exit_code == 3


@pytest.mark.full
@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.card.name)
def test_every_card_pickles(recipe) -> None:
    import pickle

    assert pickle.loads(pickle.dumps(recipe.card)) == recipe.card


def test_identity_needs_no_network_built(hub: Hub, tiles) -> None:
    """The identity that a resumed run compares is that of the encoder that made the features."""
    files, _ = timm_repo()
    hub.add("someone/model", files)
    from wsipipe.encoders import identify

    made = create_encoder("hf-hub:someone/model").identity()
    assert identify("hf-hub:someone/model") == made
    program = (
        "import sys; from wsipipe.encoders import identify, resolve;"
        "sys.argv[1:] and identify('rudolfv', weights=sys.argv[1]); print('torch' in sys.modules)"
    )
    weights = hub.repos["someone/model"].files["model.safetensors"]
    path = Path(os.environ["HF_HOME"]).parent / "own.safetensors"
    path.write_bytes(weights)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_timm_weights_come_through_the_hub(hub: Hub, tiles) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224").eval()
    data = safetensors_bytes(model.state_dict())
    hub.add("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", {"model.safetensors": data})
    encoder = create_encoder("timm:vit_tiny_patch16_224", precision="fp32")
    assert (encoder.card.licence, encoder.card.commercial) == ("apache-2.0", True)
    with torch.no_grad():
        pixels = encoder.transform(torch.from_numpy(tiles))
        expected = model.forward_features(pixels)[:, 0]
    assert torch.allclose(encoder(tiles), expected, atol=1e-5)


def test_dim_is_what_the_model_returns() -> None:
    # 960 features, and a layer to 1,280 before the classifier.
    assert resolve("timm:mobilenetv3_large_100?pretrained=false").dim == 1280


def test_python_file_takes_weights(tmp_path, tiles) -> None:
    path = tmp_path / "scaled.py"
    path.write_text(
        ENCODER_FILE.replace(
            "    def forward(self, x):\n        return x.mean((2, 3))",
            "    def __init__(self):\n        super().__init__()\n"
            "        self.gain = torch.nn.Parameter(torch.ones(3))\n\n"
            "    def forward(self, x):\n        return x.mean((2, 3)) * self.gain",
        )
    )
    weights = tmp_path / "gain.safetensors"
    weights.write_bytes(safetensors_bytes({"gain": torch.tensor([1.0, 2.0, 3.0])}))
    plain, gained = create_encoder(str(path)), create_encoder(str(path), weights=str(weights))
    assert torch.allclose(gained(tiles), plain(tiles) * torch.tensor([1.0, 2.0, 3.0]))
