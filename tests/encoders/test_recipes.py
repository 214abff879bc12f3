"""Every recipe against an independent computation: the frameworks' own models, or plain arithmetic
written out here. Nothing of `wsipipe.encoders.nets` is called for the expected value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from published import open_clip_model, published_state, shrink, timm_state

from wsipipe.encoders import Encoder, create
from wsipipe.encoders.registry import find

TOLERANCE = 1e-5
State = dict[str, torch.Tensor]


def make(name: str, depth: int = 2, **changes: Any) -> tuple[Encoder, State]:
    """A small encoder with published random weights, and those weights."""
    recipe = find(name)
    card = replace(shrink(recipe.card, depth), **changes)
    state = published_state(card)
    network = create.load_into(replace(recipe, card=card), dict(state))
    return Encoder(card, network), state


def seen(encoder: Encoder, tiles: NDArray[np.uint8]) -> torch.Tensor:
    """What the makers' transform gives for a tile of the network's own size."""
    pixels = torch.from_numpy(tiles.astype(np.float32) / 255).permute(0, 3, 1, 2)
    card = encoder.card
    if card.mean is None or card.std is None:
        return pixels
    return (pixels - torch.tensor(card.mean).view(3, 1, 1)) / torch.tensor(card.std).view(3, 1, 1)


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert one.shape == other.shape
    scale = max(1.0, float(other.abs().max()))
    assert float((one - other).abs().max()) <= tolerance * scale


def square(tiles: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
    """The tiles, repeated to another edge."""
    repeats = -(-edge // tiles.shape[1])
    return np.ascontiguousarray(np.tile(tiles, (1, repeats, repeats, 1))[:, :edge, :edge])


def timm_reference(encoder: Encoder, state: State) -> Any:
    """timm's own model with the same weights."""
    import timm
    from timm.layers import SwiGLUPacked

    layers = {"SwiGLUPacked": SwiGLUPacked, "SiLU": torch.nn.SiLU}
    kwargs = {
        k: layers.get(v, v) if isinstance(v, str) else v
        for k, v in encoder.card.arch_kwargs.items()
    }
    with torch.device("meta"):
        model = timm.create_model(encoder.card.arch, **{"num_classes": 0, **kwargs})
    wanted = model.state_dict().keys()
    model.load_state_dict({k: v for k, v in state.items() if k in wanted}, assign=True)
    return model.eval()


# name, first patch token, how the vector is made
TIMM_TOKENS = [
    ("virchow2", 5, "cls+mean"),
    ("uni", 1, "cls"),
    ("uni2-h", 9, "cls"),
    ("h0-mini-cls-mean", 5, "cls+mean"),
    ("kaiko-vits16", 1, "cls"),
    ("kaiko-vitl14", 5, "cls"),
]
# The same networks and poolings under other names.
MORE_TIMM_TOKENS = [
    ("virchow", 1, "cls+mean"),
    ("virchow-cls", 1, "cls"),
    ("virchow2-cls", 5, "cls"),
    ("virchow2g", 5, "cls+mean"),
    ("h-optimus-0", 5, "cls"),
    ("h-optimus-1", 5, "cls"),
    ("h0-mini", 5, "cls"),
    ("kaiko-vits8", 1, "cls"),
    ("kaiko-vitb8", 1, "cls"),
    ("kaiko-vitb16", 1, "cls"),
    ("lunit-dino-s8", 1, "cls"),
    ("lunit-dino-s16", 1, "cls"),
    ("pathorchestra", 1, "cls"),
    ("mstar", 1, "cls"),
    ("dinov2-vitl14", 1, "cls"),
    ("dinov2-vitg14-reg", 5, "cls"),
    ("rudolfv", 1, "cls"),
    ("brow", 1, "cls"),
    ("pluto", 1, "cls"),
]


@pytest.mark.parametrize(
    ("name", "first", "how"),
    [*TIMM_TOKENS, *(pytest.param(*row, marks=pytest.mark.full) for row in MORE_TIMM_TOKENS)],
)
def test_timm_families(name: str, first: int, how: str, tiles: NDArray[np.uint8]) -> None:
    encoder, state = make(name, depth=1)
    with torch.no_grad():
        tokens = timm_reference(encoder, state).forward_features(seen(encoder, tiles[:2]))
    expected = tokens[:, 0]
    if how == "cls+mean":
        expected = torch.cat([expected, tokens[:, first:].mean(1)], 1)
    close(encoder(tiles[:2]), expected)


def test_virchow2_registers_are_not_averaged(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("virchow2", depth=1)
    with torch.no_grad():
        tokens = timm_reference(encoder, state).forward_features(seen(encoder, tiles[:1]))
    mixed = tokens[:, 1:].mean(1)
    assert float((encoder(tiles[:1])[:, 1280:] - mixed).abs().max()) > 1e-3


def test_gigapath_cuts_the_border_of_a_256_px_tile(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("prov-gigapath", depth=1)
    large = square(tiles[:2], 256)
    with torch.no_grad():
        pixels = seen(encoder, np.ascontiguousarray(large[:, 16:240, 16:240]))
        expected = timm_reference(encoder, state).forward_features(pixels)[:, 0]
    close(encoder(large), expected)


def test_openmidnight_native_keys(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("openmidnight", depth=1)
    native = dict(state)
    timm_names: State = {}
    for key, value in native.items():
        new = key.replace("register_tokens", "reg_token")
        new = new.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")
        timm_names[new] = value
    timm_names["cls_token"] = native["cls_token"] + native["pos_embed"][:, :1]
    timm_names["pos_embed"] = native["pos_embed"][:, 1:]
    with torch.no_grad():
        model = timm_reference(encoder, timm_names)
        expected = model.forward_features(seen(encoder, tiles[:1]))[:, 0]
    close(encoder(tiles[:1]), expected)


def test_gpfm_reads_its_github_file_too(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("gpfm", depth=1)
    chunked = {f"backbone.{k.replace('blocks.', 'blocks.0.')}": v for k, v in state.items()}
    chunked["dino_head.last_layer.weight"] = torch.zeros(4, 4)
    chunked["backbone.mask_token"] = torch.zeros(1, 1024)
    recipe = replace(find("gpfm"), card=encoder.card)
    again = Encoder(encoder.card, create.load_into(recipe, chunked))
    close(again(tiles[:1]), encoder(tiles[:1]), 0.0)
    # 512 px at 40x, shrunk to 224: another tile size than the network's.
    assert encoder.card.tile_px == 512
    assert encoder(square(tiles[:1], 512)).shape == (1, 1024)


@pytest.mark.parametrize("name", ["dinov3-vitb16", "lunit-bt", "resnet50-imagenet-full"])
def test_other_timm_models(name: str, tiles: NDArray[np.uint8]) -> None:
    encoder, state = make(name)
    import timm

    kwargs = {"depth": 2} if "dinov3" in name else {}
    model = timm.create_model(encoder.card.arch, num_classes=0, **kwargs).eval()
    model.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    with torch.no_grad():
        pixels = seen(encoder, tiles[:2])
        maps = model.forward_features(pixels)
        expected = maps[:, 0] if "dinov3" in name else maps.mean((2, 3))
    close(encoder(tiles[:2]), expected)


def test_resnet50_cut_equals_torchvision(tiles: NDArray[np.uint8]) -> None:
    from torchvision.models import resnet50

    encoder, state = make("resnet50-imagenet")
    model = resnet50(weights=None).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(seen(encoder, tiles[:2])))))
        expected = model.layer3(model.layer2(model.layer1(x))).mean((2, 3))
    close(encoder(tiles[:2]), expected)


@pytest.mark.parametrize(
    "name",
    [
        "quiltnet-b-32",
        pytest.param("quiltnet-b-16", marks=pytest.mark.full),
        pytest.param("quiltnet-b-16-pmb", marks=pytest.mark.full),
    ],
)
def test_quiltnet_equals_open_clip(name: str, tiles: NDArray[np.uint8]) -> None:
    pytest.importorskip("open_clip")
    encoder, state = make(name)
    model = open_clip_model(encoder.card).eval()
    model.load_state_dict({**model.state_dict(), **state})
    with torch.no_grad():
        expected = model.encode_image(seen(encoder, tiles[:2]), normalize=False)
    close(encoder(tiles[:2]), expected)


# --- plain arithmetic ---------------------------------------------------------------------------


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def norm(state: State, name: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, C) each; softmax(q k^T / sqrt(d)) v, head by head."""
    outs = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = qh @ kh.transpose(1, 2) / qh.shape[-1] ** 0.5
        outs.append(scores.softmax(-1) @ vh)
    return torch.cat(outs, -1)


def patches_of(state: State, name: str, pixels: torch.Tensor, edge: int) -> torch.Tensor:
    """Patch embedding as a matrix product."""
    unfolded = F.unfold(pixels, edge, stride=edge).transpose(1, 2)
    return unfolded @ state[f"{name}.weight"].flatten(1).T + state[f"{name}.bias"]


def vit_block(state: State, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
    y = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, 1e-6))
    y = linear(state, f"{name}.attn.proj", attention(*y.chunk(3, -1), heads))
    x = x + y * state.get(f"{name}.ls1.gamma", torch.ones(1))
    y = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, 1e-6)))
    y = linear(state, f"{name}.mlp.fc2", y)
    return x + y * state.get(f"{name}.ls2.gamma", torch.ones(1))


def vit_tokens(state: State, pixels: torch.Tensor, positions: torch.Tensor, heads: int) -> Any:
    x = patches_of(state, "patch_embed.proj", pixels, 16)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + positions
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    for i in range(depth):
        x = vit_block(state, f"blocks.{i}", x, heads)
    return norm(state, "norm", x, 1e-6)


def below(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def test_conch_is_taken_before_its_projection(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("conch", depth=1)
    tiles448 = square(tiles[:1], 448)
    visual = below(state, "visual.")
    trunk = below(visual, "trunk.")
    tokens = vit_tokens(trunk, seen(encoder, tiles448), trunk["pos_embed"], 12)
    pool = below(visual, "attn_pool_contrast.")
    keys = norm(pool, "ln_k", tokens, 1e-5)
    query = norm(pool, "ln_q", pool["query"], 1e-5)[None]
    bq, bk, bv = pool["attn.in_proj_bias"].chunk(3)
    out = attention(
        query @ pool["attn.q_proj_weight"].T + bq,
        keys @ pool["attn.k_proj_weight"].T + bk,
        keys @ pool["attn.v_proj_weight"].T + bv,
        8,
    )
    pooled = linear(pool, "attn.out_proj", out)[:, 0]
    expected = norm(visual, "ln_contrast", pooled, 1e-5)
    close(encoder(tiles448), expected)
    projected = expected @ visual["proj_contrast"]
    assert float((encoder(tiles448) - projected).abs().max()) > 1e-2


def test_conch_v1_5_stretches_its_positions(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("conch-v1-5", depth=1)
    tiles448 = square(tiles[:1], 448)
    trunk = below(state, "trunk.")
    grid = trunk["pos_embed"][:, 1:].reshape(1, 14, 14, 1024).permute(0, 3, 1, 2)
    # DINO's resampling: 28.1 / 14 as scale factor.
    big = F.interpolate(grid, scale_factor=(28.1 / 14, 28.1 / 14), mode="bicubic")
    positions = torch.cat(
        [trunk["pos_embed"][:, :1], big.permute(0, 2, 3, 1).reshape(1, 784, 1024)], 1
    )
    tokens = vit_tokens(trunk, seen(encoder, tiles448), positions, 16)
    pool = below(state, "attn_pool_contrast.")
    keys, values = linear(pool, "to_kv", norm(pool, "ln_k", tokens, 1e-5)).chunk(2, -1)
    query = linear(pool, "to_q", norm(pool, "ln_q", pool["query"], 1e-5))[None]
    pooled = linear(pool, "to_out", attention(query, keys, values, 8))[:, 0]
    close(encoder(tiles448), norm(state, "ln_contrast", pooled, 1e-5))
    assert encoder.card.tile_px == 512


def test_keep_is_projected_to_unit_length(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("keep", depth=1)
    visual = {
        k.replace("ls1.weight", "ls1.gamma").replace("ls2.weight", "ls2.gamma"): v
        for k, v in below(state, "visual.").items()
    }
    tokens = vit_tokens(visual, seen(encoder, tiles[:1]), visual["pos_embed"], 16)
    head = below(state, "visual_head.")
    out = linear(head, "2", F.gelu(linear(head, "0", tokens[:, 0])))
    close(encoder(tiles[:1]), out / out.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("name", ["pathoduet-he", "pathoduet-ihc"])
def test_pathoduet_means_patches_and_is_not_normalised(name: str, tiles: NDArray[np.uint8]) -> None:
    encoder, state = make(name)
    assert encoder.card.mean is None
    x = patches_of(state, "patch_embed.proj", seen(encoder, tiles[:2]), 16)
    prefix = torch.cat([state["pretext_token"], state["cls_token"]], 1).expand(2, -1, -1)
    x = torch.cat([prefix, x], 1) + state["pos_embed"]
    for i in range(2):
        x = vit_block(state, f"blocks.{i}", x, 12)
    close(encoder(tiles[:2]), norm(state, "fc_norm", x[:, 2:].mean(1), 1e-6))


def test_musk_sees_two_scales(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("musk", depth=1)
    tiles384 = square(tiles[:2], 384)
    musk = below(state, "beit3.")

    def class_token(pixels: torch.Tensor) -> torch.Tensor:
        x = patches_of(musk, "vision_embed.proj", pixels, 16)
        x = torch.cat([musk["vision_embed.cls_token"].expand(len(x), -1, -1), x], 1)
        x = x + musk["encoder.embed_positions.A.weight"][2 : 2 + x.shape[1]]
        layer = below(musk, "encoder.layers.0.")
        y = norm(layer, "self_attn_layer_norm.A", x, 1e-5)
        q, k, v = (linear(layer, f"self_attn.{p}_proj.A", y) for p in "qkv")
        y = norm(layer, "self_attn.inner_attn_ln.A", attention(q, k, v, 16), 1e-5)
        x = x + linear(layer, "self_attn.out_proj.A", y)
        y = norm(layer, "final_layer_norm.A", x, 1e-5)
        y = norm(layer, "ffn.A.ffn_layernorm", F.gelu(linear(layer, "ffn.A.fc1", y)), 1e-5)
        x = x + linear(layer, "ffn.A.fc2", y)
        return norm(musk, "encoder.layer_norm.A", x[:, 0], 1e-5)

    pixels = seen(encoder, tiles384)
    large = F.interpolate(pixels, size=768, mode="bicubic")
    quarters = [large[:, :, r : r + 384, c : c + 384] for r in (0, 384) for c in (0, 384)]
    fine = sum(class_token(quarter) for quarter in quarters) / 4
    close(encoder(tiles384), torch.cat([class_token(pixels), fine], 1))
    single, _ = make("musk-single-scale", depth=1)
    close(single(tiles384), class_token(pixels))


def test_genbio_sees_one_channel_at_a_time(tiles: NDArray[np.uint8]) -> None:
    encoder, state = make("genbio-pathfm", depth=1)
    steps = (torch.arange(0.5, 14, dtype=torch.bfloat16) / 14).repeat_interleave(14)
    across = (torch.arange(0.5, 14, dtype=torch.bfloat16) / 14).repeat(14)
    where = 2.0 * torch.stack([steps, across], 1) - 1.0
    angles = 2 * torch.pi * where[:, :, None] / state["rope_embed.periods"]
    angles = angles.reshape(196, 32).repeat(1, 2)
    sin, cos = angles.sin(), angles.cos()

    def turn(x: torch.Tensor) -> torch.Tensor:  # (B, N, C) -> heads turned, class and storage not
        outs = []
        for head in x.chunk(24, -1):
            patches = head[:, 5:].to(torch.bfloat16)
            half = torch.cat([-patches[..., 32:], patches[..., :32]], -1)
            outs.append(torch.cat([head[:, :5], (patches * cos + half * sin).float()], 1))
        return torch.cat(outs, -1)

    def class_token(channel: torch.Tensor) -> torch.Tensor:
        x = patches_of(state, "patch_embed.proj", channel, 16)
        prefix = torch.cat([state["cls_token"], state["storage_tokens"]], 1)
        x = torch.cat([prefix.expand(len(x), -1, -1), x], 1)
        q, k, v = linear(state, "blocks.0.attn.qkv", norm(state, "blocks.0.norm1", x, 1e-6)).chunk(
            3, -1
        )
        y = linear(state, "blocks.0.attn.proj", attention(turn(q), turn(k), v, 24))
        x = x + y * state["blocks.0.ls1.gamma"]
        y = norm(state, "blocks.0.norm2", x, 1e-6)
        y = F.silu(linear(state, "blocks.0.mlp.w1", y)) * linear(state, "blocks.0.mlp.w2", y)
        x = x + linear(state, "blocks.0.mlp.w3", y) * state["blocks.0.ls2.gamma"]
        return norm(state, "norm", x, 1e-6)[:, 0]

    pixels = seen(encoder, tiles[:2])
    expected = torch.cat([class_token(pixels[:, i : i + 1]) for i in range(3)], 1)
    # Queries and keys are rounded to bf16 for the rotation: a last bit of float32 moves some of
    # them by 1/256, so the tolerance is that of a few flips, not of float32.
    close(encoder(tiles[:2]), expected, 1e-4)


@pytest.mark.parametrize("name", ["tissue-concepts", "tissue-concepts-pool-first"])
def test_tissue_concepts_in_both_orders(name: str, tiles: NDArray[np.uint8]) -> None:
    from torchvision.models import swin_v2_t

    encoder, state = make(name)
    model = swin_v2_t(weights=None).eval()
    own = below(state, "encoder.model.wrapped_model.")
    model.load_state_dict({**model.state_dict(), **own})
    with torch.no_grad():
        maps = model.features(seen(encoder, tiles[:2])).permute(0, 3, 1, 2)
        weight, bias = state["squeezer.norm.weight"], state["squeezer.norm.bias"]
        if name.endswith("first"):
            pooled = F.layer_norm(maps.mean((2, 3)), (768,), weight, bias)
            expected = F.gelu(pooled)
        else:
            centred = maps - maps.mean((1, 2, 3), keepdim=True)
            scaled = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
            shifted = scaled * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
            expected = F.gelu(shifted).mean((2, 3))
    close(encoder(tiles[:2]), expected)


@pytest.mark.parametrize(
    "name", ["ctranspath", pytest.param("chief-ctranspath", marks=pytest.mark.full)]
)
def test_ctranspath_equals_transformers_swin_behind_a_stem(
    name: str, tiles: NDArray[np.uint8]
) -> None:
    from transformers import SwinConfig, SwinModel

    encoder, state = make(name)
    model = SwinModel(SwinConfig(layer_norm_eps=1e-5), add_pooling_layer=False).eval()
    own = model.state_dict()
    model.load_state_dict({key: _swin_tensor(key, value, state) for key, value in own.items()})
    x = seen(encoder, tiles[:2])
    for conv, bn in ((0, 1), (3, 4)):
        x = F.conv2d(x, state[f"patch_embed.proj.{conv}.weight"], stride=2, padding=1)
        stats = [state[f"patch_embed.proj.{bn}.{p}"] for p in ("running_mean", "running_var")]
        affine = [state[f"patch_embed.proj.{bn}.{p}"] for p in ("weight", "bias")]
        x = F.relu(F.batch_norm(x, *stats, *affine))
    x = F.conv2d(x, state["patch_embed.proj.6.weight"], state["patch_embed.proj.6.bias"])
    tokens = norm(state, "patch_embed.norm", x.flatten(2).transpose(1, 2), 1e-5)
    with torch.no_grad():
        last = model.encoder(tokens, (56, 56)).last_hidden_state
        expected = norm(state, "norm", last, 1e-5).mean(1)
    close(encoder(tiles[:2]), expected)


def _swin_tensor(key: str, value: torch.Tensor, state: State) -> torch.Tensor:
    """timm 0.5's tensor for a key of transformers' Swin (version 4 or 5), written by hand."""
    import re

    if key.startswith(("embeddings.", "layernorm.")) or "index" in key:
        return state["norm." + key.rsplit(".", 1)[1]] if key.startswith("layernorm.") else value
    match = re.match(r"(?:encoder\.)?layers\.(\d+)\.(.+)$", key)
    assert match, key
    stage, rest = match[1], match[2]
    if rest.startswith("downsample."):
        return state[f"layers.{stage}.{rest}"]
    block = re.match(r"blocks\.(\d+)\.(.+)$", rest)
    assert block, key
    base, rest = f"layers.{stage}.blocks.{block[1]}.", block[2]
    for part, names in enumerate((("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))):
        if any(f".{n}." in f".{rest}" for n in names):
            return state[f"{base}attn.qkv.{rest.rsplit('.', 1)[1]}"].chunk(3)[part]
    if rest.endswith("relative_position_bias_table"):
        return state[f"{base}attn.relative_position_bias_table"]
    stem, kind = rest.rsplit(".", 1)
    table = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "attention.o_proj": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    return state[f"{base}{table[stem]}.{kind}"]


def test_uni_without_layer_scale_cannot_load() -> None:
    from wsipipe.errors import WeightsError

    recipe = find("uni")
    card = shrink(recipe.card, 2)
    state = published_state(card)
    bare = {k: v for k, v in card.arch_kwargs.items() if k != "init_values"}
    with pytest.raises(WeightsError, match=r"unexpected \(blocks\.0\.ls1\.gamma"):
        create.load_into(replace(recipe, card=replace(card, arch_kwargs=bare)), state)


def test_remedis_final_norm_is_applied(tiles: NDArray[np.uint8]) -> None:
    import timm

    encoder, state = make("remedis-50x1-m")
    model = timm.create_model("resnetv2_50x1_bit", num_classes=0).eval()
    model.load_state_dict(timm_state(encoder.card) | state)
    with torch.no_grad():
        # The very pixels: 50 layers of weight standardisation enlarge a last bit of the input.
        maps = model.stages(model.stem(encoder.transform(torch.from_numpy(tiles[:1]))))
        grouped = F.group_norm(maps, 32, state["norm.weight"], state["norm.bias"])
        expected = F.relu(grouped).mean((2, 3))
    close(encoder(tiles[:1]), expected)
