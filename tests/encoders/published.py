"""Random weights in the layouts that makers publish: key names and shapes come from the makers'
frameworks (transformers, timm, torchvision, open_clip), or are written out here by hand where the
framework is not installable; never from the code under test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wsipipe.encoders.card import EncoderCard

State = dict[str, Tensor]


def randomise(state: State, seed: int = 0) -> State:
    """Fill with numbers of sensible size; every tensor must matter (not a LayerScale of 1e-5)."""
    # A prime number of draws, repeated with another start for each tensor: a giant's random weights
    # cost a copy, and no two rows of a matrix are equal.
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed), device="cpu")
    start, filled = 0, {}
    for key, value in state.items():
        if not value.is_floating_point():
            filled[key] = torch.zeros(value.shape, dtype=value.dtype)
            continue
        repeats = -(-value.numel() // len(pool))
        noise = pool.roll(start).repeat(repeats)[: value.numel()].reshape(value.shape)
        start += 104_729
        name = key.rsplit(".", 1)[-1]
        if "running_var" in name:
            filled[key] = noise.abs() + 0.5
        elif value.ndim <= 1 and name in ("weight", "gamma", "lambda1", "gamma_1", "gamma_2"):
            filled[key] = 1 + 0.1 * noise
        elif value.ndim >= 2:
            fan_in = value[0].numel() if value.ndim > 1 else value.numel()
            matrix = name.endswith("weight") or name == "proj"
            filled[key] = noise * fan_in**-0.5 if matrix else noise * 0.3
        else:
            filled[key] = noise * 0.1
    return filled


def shrink(card: EncoderCard, depth: int = 2) -> EncoderCard:
    """The card with fewer blocks, where its family has a depth to shrink."""
    kwargs = dict(card.arch_kwargs)
    arch = card.arch or ""
    if "depth" in kwargs or arch.startswith(("vit_", "beit")):
        kwargs["depth"] = depth
    return replace(card, arch_kwargs=kwargs, params=None)


def published_state(card: EncoderCard, seed: int = 0) -> State:
    """Random weights in the layout of `card.layout`, extra keys that the makers ship included."""
    maker = _LAYOUTS.get(card.name) or _LAYOUTS.get(card.layout) or _timm
    with torch.device("meta"):  # names and shapes only: initialising is what costs time
        state = maker(card)
    state = randomise(state, seed)
    if card.name == "genbio-pathfm":
        state["rope_embed.periods"] = genbio_periods()
    return state


def timm_state(card: EncoderCard, **extra: Any) -> State:
    """What timm's own model of the card's architecture holds."""
    import timm
    from timm.layers import LayerNorm, SwiGLUPacked

    layers = {"SwiGLUPacked": SwiGLUPacked, "SiLU": torch.nn.SiLU, "LayerNorm1e-12": LayerNorm}
    kwargs = {k: layers.get(v, v) if isinstance(v, str) else v for k, v in card.arch_kwargs.items()}
    return dict(
        timm.create_model(str(card.arch), **{"num_classes": 0, **kwargs, **extra}).state_dict()
    )


def _timm(card: EncoderCard) -> State:
    return timm_state(card)


def _hf_layers(depth: int, width: int, norms: tuple[str, str]) -> dict[str, tuple[int, ...]]:
    """Attention and norms as every published transformers ViT names them."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for i in range(depth):
        layer = f"encoder.layer.{i}."
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes[f"{layer}attention.{part}.weight"] = (width, width)
            shapes[f"{layer}attention.{part}.bias"] = (width,)
        for norm in norms:
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (width,)
    return shapes


def _hf_vit(card: EncoderCard) -> State:
    depth, width = card.arch_kwargs.get("depth", 12), 768
    shapes = _hf_layers(depth, width, ("layernorm_before", "layernorm_after"))
    shapes |= {
        "embeddings.position_embeddings": (1, 197, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 16, 16),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    for i in range(depth):
        layer = f"encoder.layer.{i}."
        shapes[f"{layer}intermediate.dense.weight"] = (4 * width, width)
        shapes[f"{layer}intermediate.dense.bias"] = (4 * width,)
        shapes[f"{layer}output.dense.weight"] = (width, 4 * width)
        shapes[f"{layer}output.dense.bias"] = (width,)
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


def hf_dinov2_model(card: EncoderCard, image_px: int = 224) -> Any:
    """transformers' Dinov2 (with registers where the card has them) of the card's size."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    arch = str(card.arch)
    width, heads, depth = {
        "base": (768, 12, 12),
        "large": (1024, 16, 24),
        "giant": (1536, 24, 40),
    }[arch.split("_")[1]]
    settings: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": card.arch_kwargs.get("depth", depth),
        "patch_size": 16 if "patch16" in arch else 14,
        "image_size": image_px,
        "use_swiglu_ffn": "giant" in arch or "mlp_layer" in card.arch_kwargs,
        "attn_implementation": "eager",
    }
    if "reg4" in arch:
        return Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(num_register_tokens=4, **settings)
        )
    return Dinov2Model(Dinov2Config(**settings))


def _hf_dinov2(card: EncoderCard) -> State:
    arch = str(card.arch)
    size = arch.split("_")[1]
    width = {"base": 768, "large": 1024, "giant": 1536}[size]
    depth = card.arch_kwargs.get("depth", {"base": 12, "large": 24, "giant": 40}[size])
    patch = 16 if "patch16" in arch else 14
    shapes = _hf_layers(depth, width, ("norm1", "norm2"))
    shapes |= {
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1 + (224 // patch) ** 2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    if "reg4" in arch:
        shapes["embeddings.register_tokens"] = (1, 4, width)
    swiglu = size == "giant" or "mlp_layer" in card.arch_kwargs
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8 if swiglu else 4 * width
    first, second = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
    for i in range(depth):
        layer = f"encoder.layer.{i}."
        wide = 2 * hidden if swiglu else hidden
        shapes |= {
            f"{layer}layer_scale1.lambda1": (width,),
            f"{layer}layer_scale2.lambda1": (width,),
            f"{layer}mlp.{first}.weight": (wide, width),
            f"{layer}mlp.{first}.bias": (wide,),
            f"{layer}mlp.{second}.weight": (width, hidden),
            f"{layer}mlp.{second}.bias": (width,),
        }
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


def _hf_clip(card: EncoderCard) -> State:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig()
    config.vision_config.num_hidden_layers = card.arch_kwargs.get("depth", 12)
    config.text_config.num_hidden_layers = 1
    return dict(CLIPModel(config).state_dict())


def open_clip_model(card: EncoderCard) -> Any:
    """open_clip's CLIP of the card's size, one text layer."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    patch = 32 if "patch32" in str(card.arch) else 16
    vision = CLIPVisionCfg(
        layers=card.arch_kwargs.get("depth", 12), width=768, patch_size=patch, image_size=224
    )
    return CLIP(512, vision, CLIPTextCfg(layers=1))


def _open_clip(card: EncoderCard) -> State:
    return dict(open_clip_model(card).state_dict())


def native_dinov2(card: EncoderCard) -> State:
    """Meta's names: packed SwiGLU w12 / w3, one table of positions, a mask token."""
    native: State = {}
    for key, value in timm_state(card).items():
        new = key.replace("reg_token", "register_tokens")
        if "mlp_layer" in card.arch_kwargs or "giant" in str(card.arch):
            new = new.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3.")
        native[new] = value
    width = native["cls_token"].shape[-1]
    if "register_tokens" in native:
        class_position = torch.zeros(1, 1, width)
        native["pos_embed"] = torch.cat([class_position, native["pos_embed"]], dim=1)
    native["mask_token"] = torch.zeros(1, width)
    return native


def _dinov2(card: EncoderCard) -> State:
    # The hub's files of Kaiko, DINOv2 and GPFM are timm's; OpenMidnight's is Meta's.
    return native_dinov2(card) if card.name == "openmidnight" else timm_state(card)


def _conch(card: EncoderCard) -> State:
    state = {f"visual.trunk.{k}": v for k, v in timm_state(card).items()}
    for pool, out, queries in (("contrast", 512, 1), ("caption", 768, 256)):
        pooler = torch.nn.MultiheadAttention(out, 8, kdim=768, vdim=768)
        prefix = f"visual.attn_pool_{pool}"
        state |= {f"{prefix}.attn.{k}": v for k, v in pooler.state_dict().items()}
        state |= {
            f"{prefix}.query": torch.zeros(queries, out),
            f"{prefix}.ln_q.weight": torch.zeros(out),
            f"{prefix}.ln_q.bias": torch.zeros(out),
            f"{prefix}.ln_k.weight": torch.zeros(768),
            f"{prefix}.ln_k.bias": torch.zeros(768),
            f"visual.ln_{pool}.weight": torch.zeros(out),
            f"visual.ln_{pool}.bias": torch.zeros(out),
        }
    state["visual.proj_contrast"] = torch.zeros(512, 512)
    state["text.token_embedding.weight"] = torch.zeros(8, 8)
    state["text_decoder.text_projection"] = torch.zeros(8, 8)
    state["logit_scale"] = torch.zeros(())
    return state


def _conch_v15(card: EncoderCard) -> State:
    state = {f"trunk.{k}": v for k, v in timm_state(card).items()}
    shapes = {
        "attn_pool_contrast.query": (1, 768),
        "attn_pool_contrast.ln_k.weight": (1024,),
        "attn_pool_contrast.ln_k.bias": (1024,),
        "attn_pool_contrast.ln_q.weight": (768,),
        "attn_pool_contrast.ln_q.bias": (768,),
        "attn_pool_contrast.to_q.weight": (768, 768),
        "attn_pool_contrast.to_kv.weight": (1536, 1024),
        "attn_pool_contrast.to_out.weight": (768, 768),
        "ln_contrast.weight": (768,),
        "ln_contrast.bias": (768,),
    }
    return state | {key: torch.zeros(shape) for key, shape in shapes.items()}


def _keep(card: EncoderCard) -> State:
    state = {"visual." + k.replace(".gamma", ".weight"): v for k, v in timm_state(card).items()}
    for layer, fan_in in ((0, 1024), (2, 768)):
        state[f"visual_head.{layer}.weight"] = torch.zeros(768, fan_in)
        state[f"visual_head.{layer}.bias"] = torch.zeros(768)
    state["text.embeddings.word_embeddings.weight"] = torch.zeros(8, 8)
    state["logit_scale"] = torch.zeros(())
    return state


def _swin(card: EncoderCard) -> State:
    """timm 0.5's Swin-T with the convolutional stem."""
    state = {k: v for k, v in timm_state(card).items() if not k.startswith("patch_embed")}
    old: State = {}
    for key, value in state.items():
        parts = key.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        old[".".join(parts)] = value
    stem = {
        "proj.0.weight": (12, 3, 3, 3),
        "proj.1.weight": (12,),
        "proj.1.bias": (12,),
        "proj.1.running_mean": (12,),
        "proj.1.running_var": (12,),
        "proj.3.weight": (24, 12, 3, 3),
        "proj.4.weight": (24,),
        "proj.4.bias": (24,),
        "proj.4.running_mean": (24,),
        "proj.4.running_var": (24,),
        "proj.6.weight": (96, 24, 1, 1),
        "proj.6.bias": (96,),
        "norm.weight": (96,),
        "norm.bias": (96,),
    }
    old |= {f"patch_embed.{key}": torch.zeros(shape) for key, shape in stem.items()}
    for layer in (1, 4):
        old[f"patch_embed.proj.{layer}.num_batches_tracked"] = torch.tensor(7)
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    return old


def _beph(card: EncoderCard) -> State:
    """mmcls's BEiTViT inside an mmselfsup checkpoint."""
    width, hidden, depth = 768, 3072, card.arch_kwargs.get("depth", 12)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, width),
        "patch_embed.projection.weight": (width, 3, 16, 16),
        "patch_embed.projection.bias": (width,),
        "rel_pos_bias.relative_position_bias_table": (732, 12),
    }
    for i in range(depth):
        layer = f"layers.{i}."
        for norm in ("ln1", "ln2"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
        shapes |= {
            f"{layer}attn.qkv.weight": (3 * width, width),
            f"{layer}attn.q_bias": (width,),
            f"{layer}attn.v_bias": (width,),
            f"{layer}attn.proj.weight": (width, width),
            f"{layer}attn.proj.bias": (width,),
            f"{layer}ffn.layers.0.0.weight": (hidden, width),
            f"{layer}ffn.layers.0.0.bias": (hidden,),
            f"{layer}ffn.layers.1.weight": (width, hidden),
            f"{layer}ffn.layers.1.bias": (width,),
            f"{layer}gamma_1": (width,),
            f"{layer}gamma_2": (width,),
        }
    state = {f"backbone.{key}": torch.zeros(shape) for key, shape in shapes.items()}
    index = torch.zeros(197, 197, dtype=torch.long)
    state["backbone.rel_pos_bias.relative_position_index"] = index
    return state


def _pathoduet(card: EncoderCard) -> State:
    state = timm_state(card)
    state["pretext_token"] = torch.zeros(1, 1, 768)
    state["pos_embed"] = torch.zeros(1, 198, 768)
    state["head.weight"] = torch.zeros(256, 768)
    state["head.bias"] = torch.zeros(256)
    return state


def _musk(card: EncoderCard) -> State:
    """torchscale's BEiT-3: two experts a layer."""
    size = card.arch_kwargs
    width, hidden, positions = size["dim"], size["hidden"], (size["image_px"] // 16) ** 2 + 3
    state: State = {
        "beit3.text_embed.weight": torch.zeros(16, width),
        "beit3.vision_embed.cls_token": torch.zeros(1, 1, width),
        "beit3.vision_embed.mask_token": torch.zeros(1, 1, width),
        "beit3.vision_embed.proj.weight": torch.zeros(width, 3, 16, 16),
        "beit3.vision_embed.proj.bias": torch.zeros(width),
        "beit3.encoder.embed_positions.A.weight": torch.zeros(positions, width),
        "beit3.encoder.embed_positions.B.weight": torch.zeros(16, width),
        "vision_head.weight": torch.zeros(width, width),
        "language_head.weight": torch.zeros(width, width),
        "logit_scale": torch.zeros(()),
    }
    for expert in "AB":
        for i in range(size["depth"]):
            layer = f"beit3.encoder.layers.{i}."
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                state[f"{layer}self_attn.{name}.{expert}.weight"] = torch.zeros(width, width)
                state[f"{layer}self_attn.{name}.{expert}.bias"] = torch.zeros(width)
            norms = {
                "self_attn.inner_attn_ln.{}": width,
                "self_attn_layer_norm.{}": width,
                "final_layer_norm.{}": width,
                "ffn.{}.ffn_layernorm": hidden,
            }
            for name, dim in norms.items():
                state[f"{layer}{name.format(expert)}.weight"] = torch.zeros(dim)
                state[f"{layer}{name.format(expert)}.bias"] = torch.zeros(dim)
            state[f"{layer}ffn.{expert}.fc1.weight"] = torch.zeros(hidden, width)
            state[f"{layer}ffn.{expert}.fc1.bias"] = torch.zeros(hidden)
            state[f"{layer}ffn.{expert}.fc2.weight"] = torch.zeros(width, hidden)
            state[f"{layer}ffn.{expert}.fc2.bias"] = torch.zeros(width)
        state[f"beit3.encoder.layer_norm.{expert}.weight"] = torch.zeros(width)
        state[f"beit3.encoder.layer_norm.{expert}.bias"] = torch.zeros(width)
    return state


def _genbio(card: EncoderCard) -> State:
    size = card.arch_kwargs
    width, hidden = size["dim"], size["hidden"]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, 4, width),
        "patch_embed.proj.weight": (width, 1, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(size["depth"]):
        block = f"blocks.{i}."
        shapes |= {
            f"{block}norm1.weight": (width,),
            f"{block}norm1.bias": (width,),
            f"{block}attn.qkv.weight": (3 * width, width),
            f"{block}attn.proj.weight": (width, width),
            f"{block}attn.proj.bias": (width,),
            f"{block}ls1.gamma": (width,),
            f"{block}norm2.weight": (width,),
            f"{block}norm2.bias": (width,),
            f"{block}mlp.w1.weight": (hidden, width),
            f"{block}mlp.w1.bias": (hidden,),
            f"{block}mlp.w2.weight": (hidden, width),
            f"{block}mlp.w2.bias": (hidden,),
            f"{block}mlp.w3.weight": (width, hidden),
            f"{block}mlp.w3.bias": (width,),
            f"{block}ls2.gamma": (width,),
        }
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


def genbio_periods(head_dim: int = 64) -> Tensor:
    """The rotary periods that training stores, base 100, in bf16."""
    steps = torch.arange(head_dim // 4, dtype=torch.bfloat16)
    return 100.0 ** (2 * steps / (head_dim // 2))


def _tissue_concepts(card: EncoderCard) -> State:
    """What the conversion writes: the makers' module tree, flat."""
    from torchvision.models import get_model

    swin = get_model(str(card.arch), weights=None).state_dict()
    state = {
        f"encoder.model.wrapped_model.{key}": value
        for key, value in swin.items()
        if not key.startswith("head.")
    }
    state["squeezer.norm.weight"] = torch.zeros(card.dim)
    state["squeezer.norm.bias"] = torch.zeros(card.dim)
    return state


def _torchvision_resnet(card: EncoderCard) -> State:
    from torchvision.models import resnet50

    return dict(resnet50(weights=None).state_dict())


_LAYOUTS = {
    "hf-vit": _hf_vit,
    "hf-dinov2": _hf_dinov2,
    "hf-clip": _hf_clip,
    "open-clip": _open_clip,
    "dinov2": _dinov2,
    "conch": _conch,
    "conch-v1-5": _conch_v15,
    "keep": _keep,
    "timm-0.5-swin": _swin,
    "beph": _beph,
    "beph-relpos": _beph,
    "pathoduet-he": _pathoduet,
    "pathoduet-ihc": _pathoduet,
    "musk": _musk,
    "genbio-pathfm": _genbio,
    "tissue-concepts": _tissue_concepts,
    "resnet50-imagenet": _torchvision_resnet,
    "resnet50-imagenet-full": _torchvision_resnet,
    "lunit-bt": _torchvision_resnet,
    "lunit-swav": _torchvision_resnet,
    "lunit-mocov2": _torchvision_resnet,
}
