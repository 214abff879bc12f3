"""MAE, SimMIM, BEiT v2: see a part of a tile, say what is missing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsipipe.errors import ConfigError
from wsipipe.pretrain.backbone import Backbone, sincos, xavier
from wsipipe.pretrain.losses import fourier_loss, norm_pix_loss
from wsipipe.pretrain.method_options import ReconstructOptions
from wsipipe.pretrain.methods.base import At, Method
from wsipipe.pretrain.recipe import Recipe
from wsipipe.pretrain.views import ViewBatch

__all__ = ["Beit", "Mae", "Reconstruction", "SimMim", "random_keep"]


def random_keep(
    at: At, n_patches: int, mask_share: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which patches stay: keep (B, M) int64 and mask (B, N) bool (True = hidden), random a tile."""
    noise = torch.rand(at.n, n_patches, generator=at.generator)[at.rows].to(device)
    keep = noise.argsort(dim=1)[:, : max(1, round(n_patches * (1 - mask_share)))]
    return keep, torch.ones_like(noise, dtype=torch.bool).scatter_(1, keep, False)


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, patch²·3), rows then columns, colours last (as MAE's code)."""
    from lightly.models.utils import patchify as lightly_patchify

    patches: Tensor = lightly_patchify(images, patch)
    return patches


class Reconstruction(nn.Module):
    """MAE's decoder: mask tokens at the hidden places, a few blocks, pixels out.

    Args:
        student: The encoder, for its width and patch.
        px: Edge of the images in pixels.
        o: Options with decoder_dim, decoder_depth, decoder_heads.
    """

    positions: Tensor

    def __init__(self, student: Backbone, px: int, o: ReconstructOptions) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        width, self.patch = o.decoder_dim, student.patch
        n_prefix, grid = student.n_prefix, px // student.patch
        self.embed = nn.Linear(student.dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", sincos(width, grid, n_prefix), persistent=False)
        self.blocks = nn.Sequential(
            *[Block(width, o.decoder_heads, 4.0, qkv_bias=True) for _ in range(o.decoder_depth)]
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, self.patch**2 * 3)
        self.n_prefix = n_prefix
        self.apply(xavier)

    def forward(
        self, student: Backbone, images: Tensor, keep: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Pixel loss on hidden patches, and amplitude-spectrum loss of the whole image."""
        x = self.embed(student.tokens(images, keep=keep))
        # In float32 under autocast too: scatter wants equal dtypes.
        full = self.mask_token.to(x.dtype).expand(x.shape[0], mask.shape[1], -1)
        at = keep[:, :, None].expand(-1, -1, x.shape[-1])
        full = full.scatter(1, at, x[:, self.n_prefix :])
        x = torch.cat([x[:, : self.n_prefix], full], dim=1)
        x = x + self._positions(mask.shape[1])
        x = self.predict(self.norm(self.blocks(x)))[:, self.n_prefix :].float()
        patch = student.patch_now
        if patch != self.patch:
            x = _resized_patches(x, self.patch, patch)
        pixels = patchify(images, patch)
        spectrum = fourier_loss(_unpatchify(x, patch), _unpatchify(_standardised(pixels), patch))
        return norm_pix_loss(x, pixels, mask), spectrum

    def _positions(self, n: int) -> Tensor:
        if n + self.n_prefix == self.positions.shape[1]:
            return self.positions
        table = sincos(int(self.positions.shape[-1]), int(n**0.5), self.n_prefix)
        return table.to(self.positions)


def _standardised(patches: Tensor) -> Tensor:
    spread = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
    return (patches - patches.mean(dim=-1, keepdim=True)) / spread


def _unpatchify(patches: Tensor, patch: int) -> Tensor:
    from lightly.models.utils import unpatchify

    images: Tensor = unpatchify(patches, patch, 3)
    return images


def _resized_patches(x: Tensor, old: int, new: int) -> Tensor:
    """Predicted patches of `old` pixels to `new` pixels (flexible patch sizes)."""
    b, n, _ = x.shape
    images = x.reshape(b * n, old, old, 3).permute(0, 3, 1, 2)
    images = F.interpolate(images, (new, new), mode="bilinear", antialias=True)
    return images.permute(0, 2, 3, 1).reshape(b, n, new * new * 3)


class Mae(Method):
    """Masked autoencoder (2111.06377). Judge it by a linear probe, not by nearest neighbours."""

    min_batch = 1

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        if not self.student.is_vit:
            raise ConfigError("MAE needs a vision transformer.", "Choose a ViT with arch.timm.")
        self.decoder = Reconstruction(self.student, recipe.views.global_.px, recipe.loss)

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        images = batch.views[0]
        n = self.student.grid(images.shape[-1]) ** 2
        keep, mask = random_keep(at, n, self.recipe.loss.mask, images.device)
        pixels, _ = self.decoder(self.student, images, keep, mask)
        return {"loss": pixels}


class SimMim(Method):
    """SimMIM (2111.09886): mask squares, one linear layer predicts their pixels, L1."""

    min_batch = 1
    masking = True

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        super().__init__(recipe, classes)
        self.predict = nn.Linear(self.student.dim, self.student.patch**2 * 3)

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        images, o = batch.views[0], self.recipe.loss
        g = self.student.grid(images.shape[-1])
        cell = max(1, o.block_px // self.student.patch)
        coarse = -(-g // cell)
        _, mask = random_keep(at, coarse * coarse, o.mask, images.device)
        mask = mask.view(-1, coarse, coarse).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
        mask = mask[:, :g, :g].flatten(1)
        tokens = self.student.tokens(images, mask=mask)[:, self.student.n_prefix :]
        answer = self.predict(tokens).float()
        error = (answer - patchify(images, self.student.patch)).abs().mean(dim=-1)
        return {"loss": error[mask].mean()}


class Beit(Method):
    """BEiT v2 (2208.06366): predict which visual word a hidden patch is, from two branches.

    The published tokenizer is not at hand: words are k-means clusters of a frozen teacher's patch
    tokens, or of the patches' standardised pixels where no teacher is named.
    """

    min_batch = 1
    masking = True
    codebook: Tensor

    def __init__(self, recipe: Recipe, classes: dict[str, int] | None = None) -> None:
        from timm.models.vision_transformer import Block

        super().__init__(recipe, classes)
        o, dim = recipe.loss, self.student.dim
        self.tap = min(o.neck_layer, len(self.student.net.blocks)) - 1
        heads = self.student.net.blocks[0].attn.num_heads
        self.neck = nn.Sequential(*[Block(dim, heads, qkv_bias=True) for _ in range(o.neck_depth)])
        self.neck_norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, o.codes)
        self.tokenizer: Backbone | None = _frozen_teacher(o.teacher) if o.teacher else None
        width = self.tokenizer.dim if self.tokenizer else 48
        self.register_buffer("codebook", torch.zeros(o.codes, width))

    def prepare(self, batches: Iterable[ViewBatch]) -> None:
        """Cluster the patches of some batches into the vocabulary."""
        from sklearn.cluster import MiniBatchKMeans

        o = self.recipe.loss
        rows = torch.cat([self._descriptors(b.views[0]).flatten(0, 1).cpu() for b in batches])
        if len(rows) < 2 * o.codes:
            raise ConfigError(
                f"{len(rows)} patches are too few for a vocabulary of {o.codes}.",
                "Lower loss.codes, or give more tiles.",
            )
        kmeans = MiniBatchKMeans(o.codes, random_state=self.recipe.seed, n_init=1, batch_size=4096)
        kmeans.fit(rows.numpy())
        self.codebook.copy_(torch.from_numpy(kmeans.cluster_centers_))

    @torch.no_grad()
    def _descriptors(self, images: Tensor) -> Tensor:
        """(B, N, width) of every patch."""
        if self.tokenizer is not None:
            return self.tokenizer.tokens(images)[:, self.tokenizer.n_prefix :].float()
        patches = _standardised(patchify(images, self.student.patch))
        return _resized_patches(patches, self.student.patch, 4)

    def forward(self, batch: ViewBatch, at: At) -> dict[str, Tensor]:
        """See `Method`."""
        from wsipipe.pretrain.methods.distill import block_masks

        images, o = batch.views[0], self.recipe.loss
        net, g = self.student, self.student.grid(images.shape[-1])
        masks = block_masks(at.n, g, 1.0, (o.mask, o.mask), at.generator)
        mask = masks[at.rows].flatten(1).to(images.device)
        words = torch.cdist(self._descriptors(images)[mask], self.codebook).argmin(dim=1)
        tokens = net.tokens(images, mask=mask, tap=self.tap)
        patches = slice(net.n_prefix, None)
        early = torch.cat([tokens[:, : net.n_prefix], net.tapped[:, patches]], dim=1)
        early = self.neck_norm(self.neck(early))
        final = self.classify(tokens[:, patches][mask]).float()
        branch = self.classify(early[:, patches][mask]).float()
        accuracy = (final.argmax(dim=1) == words).float().mean()
        loss = F.cross_entropy(final, words) + F.cross_entropy(branch, words)
        return {"loss": loss, "word_accuracy": accuracy}


def _frozen_teacher(name: str) -> Backbone:
    from wsipipe.pretrain.initial import backbone_of

    teacher = backbone_of(name)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    return teacher.eval()
