"""Short formats keep the features; "auto" follows the card and the hardware."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from published import published_state, shrink

from wsipipe.encoders import Encoder, create
from wsipipe.encoders import precision as precision_module
from wsipipe.encoders.precision import lower, resolve_precision
from wsipipe.encoders.registry import find
from wsipipe.errors import ConfigError

CPU, GPU = torch.device("cpu"), torch.device("cuda")

# One of each kind of network. CPUs without bf16 emulate it at a tenth of the speed, so most of
# these run in the long suite only; blocks are as many as its time allows.
FAMILIES = [
    ("phikon", 12),
    ("h0-mini", 12),
    ("virchow2", 2),
    ("uni2-h", 2),
    ("conch", 3),
    ("conch-v1-5", 2),
    ("genbio-pathfm", 1),
    ("musk-single-scale", 2),
    ("plip", 12),
    ("keep", 2),
    ("beph-relpos", 4),
    ("pathoduet-he", 4),
    ("dinov3-vitb16", 3),
    ("ctranspath", 0),
    ("lunit-bt", 0),
    ("tissue-concepts", 0),
]


@pytest.fixture(scope="module")
def real_tiles(real_data: Path) -> np.ndarray:
    from PIL import Image

    files = sorted((real_data / "tiles_crc5").rglob("*.*"))
    images = [f for f in files if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".tif")]
    chosen = images[:: max(1, len(images) // 2)][:2]
    return np.stack([np.asarray(Image.open(f).convert("RGB").resize((224, 224))) for f in chosen])


QUICK = [("plip", 4), ("phikon", 1), ("tissue-concepts", 0)]


@pytest.mark.parametrize(
    ("name", "depth"),
    [*QUICK, *(pytest.param(*row, marks=pytest.mark.full) for row in FAMILIES)],
)
def test_bf16_keeps_the_direction_of_features(name: str, depth: int, real_tiles) -> None:
    recipe = find(name)
    card = shrink(recipe.card, depth) if depth else recipe.card
    state = published_state(card)
    # Like a trained network: LayerScale and residual branches are small beside the stream.
    for key in state:
        if key.endswith((".gamma", "lambda1", "ls1.weight", "ls2.weight", "gamma_1", "gamma_2")):
            state[key] = state[key] * 0.1
    recipe = replace(recipe, card=card)
    full = Encoder(card, create.load_into(recipe, dict(state)))
    short = Encoder(card, create.load_into(recipe, dict(state)), precision="bf16")
    edge = card.input_px
    tiles = np.ascontiguousarray(np.tile(real_tiles, (1, 3, 3, 1))[:, :edge, :edge])
    one, other = full(tiles), short(tiles)
    assert other.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=-1)
    assert float(cosine.min()) >= 0.999
    assert not torch.equal(one, other), "bf16 was not used"


def test_auto_follows_card_and_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "cpu_has_bf16", lambda: True)
    assert resolve_precision("auto", "auto", CPU) == "bf16"
    assert resolve_precision("auto", "fp16", CPU) == "bf16"
    assert resolve_precision("auto", "fp32", CPU) == "fp32"
    assert resolve_precision("fp32", "bf16", CPU) == "fp32"
    monkeypatch.setattr(precision_module, "cpu_has_bf16", lambda: False)
    assert resolve_precision("auto", "auto", CPU) == "fp32"
    assert resolve_precision("bf16", "auto", CPU) == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert resolve_precision("auto", "auto", GPU) == "bf16"
    assert resolve_precision("auto", "fp16", GPU) == "fp16"
    assert resolve_precision("auto", "fp32", GPU) == "fp32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert resolve_precision("auto", "auto", GPU) == "fp16"
    with pytest.raises(ConfigError, match="int8"):
        resolve_precision("int8", "auto", CPU)


def test_what_bf16_would_harm_runs_in_fp32_by_itself() -> None:
    # 0.998 was measured for REMEDIS's weight-standardised ResNets.
    for name in ("remedis-50x1-m", "remedis-152x2-m", "texture"):
        assert find(name).card.precision == "fp32"


def test_only_products_are_shortened() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    lower(network, "bf16")
    assert network[0].weight.dtype == torch.bfloat16
    assert network[1].weight.dtype == torch.float32


def test_callers_autocast_does_not_change_fp32(tiles) -> None:
    from wsipipe.encoders import create_encoder

    encoder = create_encoder("timm:vit_tiny_patch16_224?pretrained=false", precision="fp32")
    plain = encoder(tiles)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(tiles), plain)


def test_start_hands_over_what_a_call_gives(tiles) -> None:
    from wsipipe.encoders import create_encoder

    encoder = create_encoder("timm:vit_tiny_patch16_224?pretrained=false", precision="fp32")
    pending = encoder.start(tiles)
    assert pending.done()
    np.testing.assert_array_equal(pending.result(), encoder(tiles).numpy())
