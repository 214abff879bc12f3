"""The network that is trained: a timm model, with access to its tokens where it is a ViT.

The wrapped timm model keeps its own parameter names, so what is exported is a plain timm
checkpoint. timm's own position-embedding code is used throughout: continued training keeps the
embedding it starts with (lightly's wrapper would overwrite it), and any crop of whole patches
works.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsipipe.encoders.nets.vit import pool_tokens, timm_model
from wsipipe.errors import ConfigError
from wsipipe.pretrain.options import Arch

__all__ = ["POOLING", "Backbone", "build_backbone", "timm_arguments", "xavier"]

# A recipe's word for pooling -> the word of encoder cards.
POOLING = {"token": "cls", "avg": "mean", "cls+mean": "cls+mean"}


class Backbone(nn.Module):
    """A timm model with pooled features and, for ViTs, tokens.

    Args:
        net: timm model without a classifier.
        pool: "token", "avg" or "cls+mean".
        masking: Whether patches can be replaced by a learned mask token.

    Attributes:
        dim: Width of the tokens.
        out_dim: Width of the pooled features.
        is_vit: Whether `tokens` works.
        n_prefix: Class and register tokens before the patches (0 for other networks).
        patch: Edge of a patch in pixels (0 for other networks).
    """

    def __init__(self, net: Any, pool: str = "token", masking: bool = False) -> None:
        super().__init__()
        self.net, self.pool = net, pool
        self.dim = int(net.num_features)
        self.out_dim = self.dim * (2 if pool == "cls+mean" else 1)
        self.is_vit = isinstance(net, VisionTransformer)
        self.n_prefix = int(net.num_prefix_tokens) if self.is_vit else 0
        self.patch = int(net.patch_embed.patch_size[0]) if self.is_vit else 0
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.dim)) if masking else None
        self.patch_now = self.patch
        if masking and not self.is_vit:
            raise ConfigError(
                "masked patches need a vision transformer.", "Choose a ViT with arch.timm."
            )

    def grid(self, px: int) -> int:
        """Patches along the edge of an image of `px` pixels."""
        return px // self.patch_now

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, out_dim) pooled features."""
        if not self.is_vit:
            features: Tensor = self.net(images)
            return features
        return self.pooled(self.tokens(images))

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, n_prefix + N, dim) -> (B, out_dim), the way the exported encoder does."""
        return pool_tokens(tokens, POOLING[self.pool], self.n_prefix)

    def summary(self, tokens: Tensor) -> Tensor:
        """The class token where there is one, else the mean of the patches: (B, dim)."""
        has_class = self.net.cls_token is not None
        return tokens[:, 0] if has_class else tokens[:, self.n_prefix :].mean(dim=1)

    def patches(self, images: Tensor) -> Tensor:
        """Patch embeddings before positions are added: (B, N, dim)."""
        if self.patch_now == self.patch:
            x: Tensor = self.net.patch_embed(images)
            return x.flatten(1, 2) if x.ndim == 4 else x
        from timm.layers import resample_patch_embed

        proj = self.net.patch_embed.proj
        weight = resample_patch_embed(proj.weight, [self.patch_now, self.patch_now])
        x = F.conv2d(images, weight, proj.bias, stride=self.patch_now)
        return x.flatten(2).transpose(1, 2)

    def tokens(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        prefix: Tensor | None = None,
        tap: int | None = None,
    ) -> Tensor:
        """All tokens after the last norm.

        Args:
            images: (B, 3, H, W), H = W a multiple of the patch.
            mask: (B, N) bool: these patches become the mask token.
            keep: (B, M) int64: only these patches go through the blocks.
            prefix: (B, P, dim) tokens put before all others, without a position.
            tap: Also keep the output of this block (0-based), as `self.tapped` (not normed).

        Returns:
            (B, P + n_prefix + N or M, dim).
        """
        net = self.net
        x = self.patches(images)
        if mask is not None:
            assert self.mask_token is not None
            x = torch.where(mask[:, :, None], self.mask_token.to(x.dtype), x)
        x = self._positions(x, images.shape[-1])
        if keep is not None:
            chosen = keep[:, :, None].expand(-1, -1, x.shape[-1])
            x = torch.cat([x[:, : self.n_prefix], x[:, self.n_prefix :].gather(1, chosen)], dim=1)
        if prefix is not None:
            x = torch.cat([prefix.to(x.dtype), x], dim=1)
        x = net.norm_pre(x)
        for i, block in enumerate(net.blocks):
            if getattr(net, "grad_checkpointing", False) and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
            if i == tap:
                self.tapped = x
        out: Tensor = net.norm(x)
        return out

    def _positions(self, x: Tensor, px: int) -> Tensor:
        if self.net.dynamic_img_size:
            g = self.grid(px)
            x = x.view(x.shape[0], g, g, x.shape[-1])
        out: Tensor = self.net._pos_embed(x)
        return out


def build_backbone(arch: Arch, *, masking: bool = False, teacher: bool = False) -> Backbone:
    """A fresh network.

    Args:
        arch: The recipe's architecture.
        masking: With a mask token.
        teacher: Without stochastic depth.

    Raises:
        ConfigError: timm does not know the architecture or an argument.
    """
    args = timm_arguments(arch)
    if arch.drop_path and not teacher:
        args["drop_path_rate"] = arch.drop_path
    try:
        net: Any = timm_model(arch.timm, args)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"timm cannot build {arch.timm!r} with {args}: {error}") from None
    if arch.grad_checkpointing:
        net.set_grad_checkpointing(True)
    backbone = Backbone(net, arch.pool, masking)
    if arch.initial == "xavier":
        backbone.net.apply(xavier)
        projection = backbone.net.patch_embed.proj.weight
        nn.init.xavier_uniform_(projection.data.flatten(1))
    if arch.pos_embed != "learned" and backbone.is_vit:
        set_sincos(backbone.net, trainable=arch.pos_embed == "sincos")
    if arch.freeze_patch_embed and backbone.is_vit:
        for parameter in backbone.net.patch_embed.parameters():
            parameter.requires_grad_(False)
    return backbone


def timm_arguments(arch: Arch) -> dict[str, Any]:
    """Arguments of timm's model, as they also stand in the exported config.json."""
    args: dict[str, Any] = {**arch.args, "num_classes": 0}
    if arch.timm.startswith(("vit_", "deit_", "deit3_", "flexivit_")):
        args.setdefault("dynamic_img_size", True)
        # The last norm stays before pooling, so that class and patch tokens are both normed.
        args["fc_norm"] = False
        args["global_pool"] = "avg" if arch.pool == "avg" else "token"
    return args


def xavier(module: nn.Module) -> None:
    """MAE's random start: at timm's 0.02 a shallow encoder hardly gets going."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sincos(dim: int, grid: int, n_prefix: int) -> Tensor:
    """(1, n_prefix + grid², dim) 2-D sine-cosine position embedding; zeros for prefix tokens."""
    from lightly.models.utils import get_2d_sine_cosine_positional_embedding

    table = get_2d_sine_cosine_positional_embedding(
        embed_dim=dim, grid_size=grid, num_prefix_tokens=0
    )
    table = torch.as_tensor(table).float()
    return torch.cat([torch.zeros(n_prefix, dim), table]).unsqueeze(0)


def set_sincos(net: Any, trainable: bool) -> None:
    """Replace a ViT's position embedding by the sine-cosine one."""
    grid = net.patch_embed.grid_size[0]
    n_prefix = 0 if net.no_embed_class else net.num_prefix_tokens
    net.pos_embed.data.copy_(sincos(net.embed_dim, grid, n_prefix))
    net.pos_embed.requires_grad_(trainable)
