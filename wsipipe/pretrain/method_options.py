"""Settings of the training methods, the `loss` section of a recipe. Unknown keys are errors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from wsipipe.pretrain.options import Frozen, Pair, Share

__all__ = [
    "OPTIONS",
    "ByolOptions",
    "ClipOptions",
    "DinoOptions",
    "FinetuneOptions",
    "FixMatchOptions",
    "IbotOptions",
    "KdeOptions",
    "MaskedOptions",
    "MocoV2Options",
    "MocoV3Options",
    "MultiTaskOptions",
    "PathoDuetOptions",
    "ReconstructOptions",
    "SimclrOptions",
]


class SimclrOptions(Frozen):
    """SimCLR: hidden and out are the widths of the projection."""

    temp: float = 0.5
    hidden: int = 2048
    out: int = 128


class MocoV2Options(Frozen):
    """MoCo v2: queue of keys, fixed momentum of the key encoder."""

    temp: float = 0.2
    queue: int = 65536
    ema: Pair = (0.999, 0.999)
    hidden: int = 2048
    out: int = 128


class MocoV3Options(Frozen):
    """MoCo v3."""

    temp: float = 0.2
    ema: Pair = (0.99, 1.0)
    hidden: int = 4096
    out: int = 256


class ByolOptions(Frozen):
    """BYOL."""

    ema: Pair = (0.996, 1.0)
    hidden: int = 4096
    out: int = 256


class IbotOptions(Frozen):
    """Masked patches: `k` prototypes of a separate head; share of images masked, and of patches."""

    weight: float = 1.0
    separate_head: bool = True
    k: int = 65536
    images: Share = 0.5
    ratio: Pair = (0.1, 0.5)


class KdeOptions(Frozen):
    """Kernel density instead of KoLeo."""

    weight: float = 0.05
    kappa: float = 5.0


class ReconstructOptions(Frozen):
    """Masked reconstruction beside self-distillation (PLUTO): weights of pixels and spectra."""

    weight: float = 1.0
    mask: Share = 0.75
    fourier: float = 0.01
    decoder_dim: int = 512
    decoder_depth: int = 4
    decoder_heads: int = 8


class DinoOptions(Frozen):
    """DINO, iBOT, DINOv2 and their kin.

    Attributes:
        k, hidden, bottleneck: Prototypes and widths of the head.
        student_temp, temp, temp_warmup: Temperatures; the teacher's goes from first to last over
            this share of the steps.
        ema: Momentum of the teacher, first and last (cosine).
        centering: centering, sinkhorn, or none (collapses; for tests of the alarm).
        freeze_last: Share of the steps during which the prototypes stay.
        ibot, koleo, kde, reconstruct: Further terms.
    """

    k: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    student_temp: float = 0.1
    temp: Pair = (0.04, 0.07)
    temp_warmup: Share = 0.3
    ema: Pair = (0.996, 1.0)
    centering: Literal["centering", "sinkhorn", "none"] = "centering"
    freeze_last: Share = 0.01
    ibot: IbotOptions | None = None
    koleo: float = 0.0
    kde: KdeOptions | None = None
    reconstruct: ReconstructOptions | None = None


class MaskedOptions(Frozen):
    """MAE, SimMIM, BEiT v2.

    Attributes:
        mask: Share of patches that is masked.
        block_px: Edge of masked squares in pixels (SimMIM); 0 = single patches.
        decoder_dim, decoder_depth, decoder_heads: MAE's decoder.
        codes: Size of the visual vocabulary (BEiT v2).
        teacher: timm architecture or encoder whose patch tokens are clustered to codes; "" = stain
            and texture statistics of the patches themselves.
        neck_layer: Block whose patch tokens feed the second term (BEiT v2).
        neck_depth: Blocks of that branch.
    """

    mask: Share = 0.75
    block_px: int = 0
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    codes: int = 8192
    teacher: str = ""
    neck_layer: int = 9
    neck_depth: int = 2


class PathoDuetOptions(MocoV3Options):
    """PathoDuet: MoCo v3, plus the bridge between a region and a patch, or between two stains."""

    bridge: float = 0.5
    cross_stain: bool = False


class MultiTaskOptions(Frozen):
    """Supervised training on several tasks at once (TissueConcepts)."""

    dropout: Share = 0.2


class FixMatchOptions(Frozen):
    """FixMatch: pseudo-labels of weak views above `threshold` teach strong views."""

    threshold: Share = 0.95
    weight: float = 1.0
    labelled_share: Share = 0.25


class ClipOptions(Frozen):
    """CLIP: a text tower beside the image encoder."""

    out: int = 512
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    context: int = 77
    temp: float = 0.07


class FinetuneOptions(Frozen):
    """Fine-tuning on labelled tiles.

    Attributes:
        mode: linear (the encoder stays), blocks (the last ones train), lora (low-rank updates).
        blocks: How many of the last blocks train.
        rank, alpha, dropout: Of LoRA.
    """

    mode: Literal["linear", "blocks", "lora"] = "lora"
    blocks: int = Field(2, ge=1)
    rank: int = Field(8, ge=1)
    alpha: float = 16.0
    dropout: Share = 0.0


OPTIONS: dict[str, type[Frozen]] = {
    "simclr": SimclrOptions,
    "moco-v2": MocoV2Options,
    "moco-v3": MocoV3Options,
    "byol": ByolOptions,
    "dino": DinoOptions,
    "mae": MaskedOptions,
    "simmim": MaskedOptions,
    "beit": MaskedOptions,
    "pathoduet": PathoDuetOptions,
    "multitask": MultiTaskOptions,
    "fixmatch": FixMatchOptions,
    "clip": ClipOptions,
    "finetune": FinetuneOptions,
}
