"""Settings of recipes: what may stand in a recipe file. Unknown keys are errors.

No torch here: `--list` and `--describe` stay fast. Schedules are shares of all steps, so that a
recipe scales from minutes to weeks by its number of steps alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "Arch",
    "Crop",
    "Frozen",
    "HsvFilter",
    "Monitor",
    "Optim",
    "Pair",
    "Region",
    "Sampler",
    "Share",
    "Stain",
    "Views",
]

Share = Annotated[float, Field(ge=0, le=1)]
Pair = tuple[float, float]
Triple = tuple[Share, Share, Share]


class Frozen(BaseModel):
    """Settings that cannot change and know no other key."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Arch(Frozen):
    """The network.

    Attributes:
        timm: Architecture's name in timm.
        args: Keyword arguments of `timm.create_model`.
        pool: What the exported encoder answers: the class token, the mean of the patch tokens, or
            both, one after the other.
        pos_embed: learned; sincos (2-D sine-cosine start, then learned); fixed (never changes).
        initial: timm's own random start, or MAE's (Xavier for all linear layers).
        freeze_patch_embed: MoCo v3's cure against instability.
        patch_sizes: Patch edges drawn anew each step (FlexiViT); empty = the architecture's own.
        drop_path: Stochastic depth of the student.
        grad_checkpointing: Save memory by computing activations twice.
    """

    timm: str
    args: dict[str, Any] = {}
    pool: Literal["token", "avg", "cls+mean"] = "token"
    pos_embed: Literal["learned", "sincos", "fixed"] = "learned"
    initial: Literal["timm", "xavier"] = "timm"
    freeze_patch_embed: bool = False
    patch_sizes: tuple[int, ...] = ()
    drop_path: Share = 0.0
    grad_checkpointing: bool = False


class HsvFilter(Frozen):
    """A tile counts when `share` of its pixels lie within these 8-bit HSV bounds (H 0 to 180)."""

    h: Pair = (90, 180)
    s: Pair = (8, 255)
    v: Pair = (103, 255)
    share: Share = 0.6


class Region(Frozen):
    """A coarser region around each patch (PathoDuet).

    Attributes:
        px: Edge of the region image in pixels.
        factor: Edge of the region over the edge of the patch, in µm.
    """

    px: int = 224
    factor: float = 8.0


class Sampler(Frozen):
    """Which pixels are seen.

    Attributes:
        px: Edge of a sampled tile in pixels at its mpp.
        mpp: One mpp, a mixture {mpp: weight}, or [low, high]: continuous, uniform in log(mpp).
        tissue: Share of a tile that must be tissue.
        hsv: Filter on each tile's own pixels.
        slides_per_batch: Slides that a batch draws from, at least.
        pool: Slides held open at a time.
        reuse: Batches drawn from a pool before it moves on.
        snap: Place tiles within as few compressed blocks as possible.
        share: With snap off: tiles at free places cut from the same decoded blocks, dealt out to
            as many batches in a row.
        balance: tiles (slides weigh as their tissue area), slides (all the same), clusters.
        region: Also read a coarser region around each tile.
    """

    px: int = Field(256, ge=16)
    mpp: dict[float, float] | tuple[float, float] | float = 0.5
    tissue: Share = 0.25
    hsv: HsvFilter | None = None
    slides_per_batch: int = Field(8, ge=1)
    pool: int = Field(16, ge=1)
    reuse: int = Field(32, ge=1)
    snap: bool = True
    share: int = Field(1, ge=1, le=16)
    balance: Literal["tiles", "slides", "clusters"] = "tiles"
    region: Region | None = None

    @field_validator("mpp")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        numbers = [*value, *value.values()] if isinstance(value, dict) else value
        for number in numbers if isinstance(numbers, list | tuple) else [numbers]:
            if number <= 0:
                raise ValueError("mpp and weights must be above 0")
        if isinstance(value, tuple) and value[0] >= value[1]:
            raise ValueError("a range of mpp is [low, high]")
        return value

    @model_validator(mode="after")
    def _free_places(self) -> Sampler:
        if self.share > 1 and (self.snap or self.balance == "clusters"):
            raise ValueError("share above 1 needs snap: false, and no balance: clusters")
        return self


class Crop(Frozen):
    """Random resized crops.

    Attributes:
        n: Crops of each tile.
        px: Edge of the crop in pixels.
        area: Share of the tile's area, lowest and highest.
        ratio: Width over height, lowest and highest.
    """

    n: int = Field(2, ge=0)
    px: int = 224
    area: Pair = (0.32, 1.0)
    ratio: Pair = (0.75, 1.3333)


class Stain(Frozen):
    """Changes of stain.

    Attributes:
        hed: Strength of jitter in stain space (.05 light, .2 strong); 0 = none.
        randstainna: Probability of RandStainNA.
        transfer: Probability of taking on the colour statistics of another tile of the batch.
    """

    hed: float = Field(0.0, ge=0)
    randstainna: Share = 0.0
    transfer: Share = 0.0


class Views(Frozen):
    """Views of a tile. Triples are (first global, other globals, locals).

    Attributes:
        global_: Global crops (key `global`).
        local: Local crops.
        flip: "", "h", or "hv".
        rot90: Quarter turns.
        rotate: Largest turn to either side, in degrees, before the crop.
        jitter: brightness, contrast, saturation, hue, probability.
        grey: Probability of greyscale.
        blur_p: Probability of blur.
        blur_sigma: Lowest and highest, in pixels of the crop.
        solarize_p: Probability of solarisation.
        stain: Changes of stain.
        shuffle: Patch shuffle of the last global view: probability and grid.
        weak_first: The first global view is only cropped, flipped and turned (FixMatch).
        mean, std: Normalisation of values in 0..1; null = none. Travels with the encoder.
    """

    global_: Crop = Field(Crop(n=2), alias="global")
    local: Crop = Crop(n=0, px=96, area=(0.05, 0.32))
    flip: Literal["", "h", "hv"] = "hv"
    rot90: bool = False
    rotate: float = 0.0
    jitter: tuple[float, float, float, float, Share] = (0.0, 0.0, 0.0, 0.0, 0.0)
    grey: Share = 0.0
    blur_p: Triple = (0.0, 0.0, 0.0)
    blur_sigma: Pair = (0.1, 2.0)
    solarize_p: Triple = (0.0, 0.0, 0.0)
    stain: Stain = Stain(hed=0.0)
    shuffle: tuple[Share, int] = (0.0, 4)
    weak_first: bool = False
    mean: tuple[float, float, float] | None = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] | None = (0.229, 0.224, 0.225)


class Optim(Frozen):
    """The optimiser and its schedules.

    Attributes:
        name: adamw, sgd or lars.
        lr: Learning rate at batch `lr_batch`.
        lr_batch, lr_rule: lr × (batch / lr_batch) to the power 1 (linear), ½ (sqrt) or 0 (none).
        min_lr: Last learning rate, as a share of the highest.
        batch: Tiles of one update, over all processes and accumulation steps.
        steps: Updates.
        warmup: Share of the steps.
        weight_decay: First and last (cosine).
        betas: Of AdamW.
        momentum: Of SGD and LARS.
        clip: Largest norm of the gradient; 0 = no limit.
        layer_decay: Factor on the learning rate from each block to the one below.
        patch_embed_lr: Further factor for the patch embedding.
        accumulate: Micro-batches of an update.
        precision: auto = bf16 on a GPU that has it, else fp32.
    """

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = Field(5e-4, gt=0)
    lr_batch: int = 256
    lr_rule: Literal["linear", "sqrt", "none"] = "linear"
    min_lr: Share = 0.001
    batch: int = Field(1024, ge=1)
    steps: int = Field(100_000, ge=1)
    warmup: Share = 0.1
    weight_decay: Pair = (0.04, 0.04)
    betas: Pair = (0.9, 0.999)
    momentum: float = 0.9
    clip: float = Field(0.0, ge=0)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    patch_embed_lr: Share = 1.0
    accumulate: int = Field(1, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @model_validator(mode="after")
    def _whole(self) -> Optim:
        if self.batch % self.accumulate:
            raise ValueError("batch must be a multiple of accumulate")
        return self


class Monitor(Frozen):
    """Watching over training.

    Attributes:
        every: Steps between checks.
        tiles: Tiles of a check.
        minutes: Minutes between checkpoints.
        stop: Stop when collapsed.
        std, rank, entropy, patience, grace: See `wsipipe.pretrain.monitors.Limits`.
    """

    every: int = Field(100, ge=1)
    tiles: int = Field(256, ge=8)
    minutes: float = Field(15.0, gt=0)
    stop: bool = True
    std: float = 0.02
    rank: float = 3.0
    entropy: float = 0.998
    patience: int = 3
    grace: Share = 0.1
