"""Settings of a run: frozen, each with its unit; an unknown key is refused, never ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wsipipe.errors import ConfigError

__all__ = ["ExtractSettings", "Shard"]

Auto = Literal["auto"]

# Outside of this range an mpp is a mistake, not a microscope (contract, section 4).
MPP_RANGE = (0.05, 20.0)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Settings):
    """A fixed share of the slides: number `index` (1-based) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "I/N".

        Raises:
            ConfigError: `text` is not two whole numbers with 1 <= I <= N.
        """
        head, slash, tail = text.partition("/")
        if slash and head.strip().isdecimal() and tail.strip().isdecimal():
            index, count = int(head), int(tail)
            if 1 <= index <= count:
                return cls(index=index, count=count)
        raise ConfigError(
            f"--shard {text!r} is not a share.", "Write I/N with 1 <= I <= N, such as --shard 3/8."
        )


class ExtractSettings(_Settings):
    """What `wsipipe extract` was asked to do.

    Attributes:
        encoders: Names as in the contract's grammar; all share one pass over the pixels.
        out: Folder of the run.
        mpp: Target resolution in µm per pixel; None: the card's.
        tile_px: Tile edge in pixels at `mpp`; None: the card's.
        allow_off_card: Permits an mpp or tile_px that differs from the card.
        mpp_tolerance: Relative distance up to which a level's own pixels are taken unresampled.
        max_upsample: How much coarser than `mpp` a slide may be and still be interpolated.
        overlap: Fraction of a tile shared with its neighbour.
        min_tissue: Fraction of a tile's area that must be tissue.
        tissue: Name of a detector, "none", or a folder of GeoJSON masks.
        roi: GeoJSON file, or folder of them, to stay inside of; `roi_class` picks one class.
        quality: Measure each tile (`quality/<name>` in the feature file).
        min_focus, min_saturation, max_pen, max_blood, max_black: Leave out tiles beyond these;
            see `wsipipe.tissue.quality`. Each implies `quality`.
        slide_mpp: Level-0 resolution in µm per pixel, for all slides; wins over metadata.
        device: "auto" or a torch device; several, with commas, get a process each.
        precision: "auto" or how the model computes.
        batch_size: Tiles in one forward.
        workers: Threads that read and decode.
        dtype: Of the stored features.
        shard: This process's fixed share of the slides.
        join: Take slides by lease, so that several processes may share `out`.
        executor: "local"; "ray" for a Ray cluster, or "ray://HOST[:PORT]" for that one.
        weights: A checkpoint of one's own for the (single) encoder.
        icc: "srgb" applies the slide's colour profile.
        stage: Local folder that slides are copied to before they are read.
        slide_timeout: Seconds that one step of reading may take before its slide fails.
        grace: Seconds after the first signal in which slides in flight may still finish.
        deterministic: Features bit-equal on one machine, whatever batch size and threads.
        recompute: Replace files of another identity instead of refusing.
        strict: Stop at the first failed slide.
        max_bad_tiles: Share of unreadable tiles above which a slide fails.
        compile: Try torch.compile and channels-last, and keep what is the same and faster.
        profile: File for a trace of what each thread does; None: none is made.
        pseudonymize: Key file; slides go by keyed hashes of their ids in all outputs.
        new_key: Make the key file if it is not there.
        pseudonym_map: CSV file of who is who, outside of `out`.
        hide_paths: Of absolute paths only the last part is recorded.
    """

    encoders: tuple[str, ...] = ("texture",)
    out: Path = Path("wsipipe-out")
    mpp: float | None = None
    tile_px: int | None = Field(None, ge=16, le=8192)
    allow_off_card: bool = False
    mpp_tolerance: float = Field(0.05, ge=0, lt=1)
    max_upsample: float = Field(1.10, ge=1, le=4)
    overlap: float = Field(0.0, ge=0, lt=1)
    min_tissue: float = Field(0.25, ge=0, le=1)
    tissue: str = "auto"
    roi: Path | None = None
    roi_class: str | None = None
    quality: bool = False
    min_focus: float | None = Field(None, ge=0)
    min_saturation: float | None = Field(None, ge=0, le=1)
    max_pen: float | None = Field(None, ge=0, le=1)
    max_blood: float | None = Field(None, ge=0, le=1)
    max_black: float | None = Field(None, ge=0, le=1)
    slide_mpp: float | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch_size: int | Auto = "auto"
    workers: int | Auto = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    shard: Shard | None = None
    join: bool = False
    executor: str = "local"
    weights: str | None = None
    icc: Literal["none", "srgb"] = "none"
    stage: Path | None = None
    slide_timeout: float = Field(600.0, gt=0)
    grace: float = Field(30.0, ge=0)
    deterministic: bool = False
    recompute: bool = False
    strict: bool = False
    max_bad_tiles: float = Field(0.01, ge=0, le=1)
    compile: bool = False
    profile: Path | None = None
    pseudonymize: Path | None = None
    new_key: bool = False
    pseudonym_map: Path | None = None
    hide_paths: bool = False

    @field_validator("encoders", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        names = (value,) if isinstance(value, str) else tuple(value)
        return tuple(dict.fromkeys(names))

    @field_validator("out", "tissue", "roi", "weights", "stage", "profile", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        # An unset variable of the shell; as a path it would be the current folder.
        if value == "":
            raise ValueError("is empty")
        return value

    @field_validator("shard", mode="before")
    @classmethod
    def _shard_text(cls, value: Any) -> Any:
        return Shard.parse(value) if isinstance(value, str) else value

    @field_validator("executor")
    @classmethod
    def _known_executor(cls, value: str) -> str:
        if value not in ("local", "ray") and not value.startswith("ray://"):
            raise ValueError("is neither local, nor ray, nor ray://HOST")
        return value

    @field_validator("mpp", "slide_mpp")
    @classmethod
    def _plausible_mpp(cls, value: float | None) -> float | None:
        if value is not None and not MPP_RANGE[0] <= value <= MPP_RANGE[1]:
            raise ValueError(f"{value} µm per pixel is outside {MPP_RANGE[0]} to {MPP_RANGE[1]}")
        return value

    @field_validator("batch_size", "workers")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, or 'auto'")
        return value

    @model_validator(mode="after")
    def _together(self) -> ExtractSettings:
        if not self.encoders:
            raise ValueError("at least one encoder is needed")
        if self.weights is not None and len(self.encoders) > 1:
            raise ValueError("weights is for one encoder, and several are given")
        if self.roi_class is not None and self.roi is None:
            raise ValueError("roi_class needs roi")
        if not self.devices:
            raise ValueError("device names none")
        if self.compile and self.deterministic:
            raise ValueError("compile and deterministic exclude each other")
        if self.compile and self.device.startswith("openvino"):
            raise ValueError("compile is torch's; OpenVINO compiles on its own")
        if self.profile is not None and self.executor != "local":
            raise ValueError("profile is for the local executor: it traces this machine's threads")
        if self.pseudonymize is None and (self.new_key or self.pseudonym_map is not None):
            raise ValueError("new_key and pseudonym_map need pseudonymize")
        if self.join and self.shard is not None:
            raise ValueError("join and shard exclude each other: a shard is a fixed share")
        return self

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices, one a process."""
        return tuple(name.strip() for name in self.device.split(",") if name.strip())

    @classmethod
    def of(cls, **values: Any) -> ExtractSettings:
        """Settings from keywords; what is wrong is said in one sentence a key.

        Raises:
            ConfigError: A key is unknown or a value does not fit.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(_sentences(error, cls)) from None


def _sentences(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence for each thing that is wrong; an unknown key with its nearest known one."""
    from difflib import get_close_matches

    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"][:1])
        if item["type"] == "extra_forbidden":
            near = get_close_matches(key, model.model_fields, n=1)
            lines.append(
                f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ".")
            )
            continue
        reason = item["msg"].removeprefix("Value error, ")
        lines.append(f"{key} = {item['input']!r}: {reason}." if key else f"{reason}.")
    return " ".join(dict.fromkeys(lines))
