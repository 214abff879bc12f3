"""The error tree: what happened, to which object, what to do now.

    WsipipeError
    ├── SlideError               one slide is unusable; the others go on
    │   ├── SlideOpenError       the file cannot be opened
    │   ├── MissingMppError      nobody says how large a pixel is
    │   ├── ResolutionError      the slide is too coarse for what is asked
    │   ├── ReadError            pixels cannot be decoded
    │   └── TissueError          tissue detection does not apply, or a mask does not fit
    ├── EncoderError
    │   ├── UnknownEncoderError
    │   ├── GatedEncoderError    a licence has to be accepted first
    │   ├── WeightsError         weights are missing, wrong or do not fit
    │   ├── ModelError           the network itself failed on a batch
    │   └── OffCardError         mpp or tile size other than the card's, not asked for
    ├── StoreError
    │   ├── IdentityMismatchError
    │   ├── CorruptFileError
    │   └── OutputError          disk full, output not writable
    ├── ConfigError              a flag, configuration or manifest is wrong
    ├── MissingExtraError        an optional package is needed
    └── Drained                  asked to stop: whole files only, run again to go on

`exit_code` is what the command line ends with when the error stops the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

__all__ = [
    "ConfigError",
    "CorruptFileError",
    "Drained",
    "EncoderError",
    "GatedEncoderError",
    "IdentityMismatchError",
    "MissingExtraError",
    "MissingMppError",
    "ModelError",
    "OffCardError",
    "OutputError",
    "ReadError",
    "ResolutionError",
    "SlideError",
    "SlideOpenError",
    "StoreError",
    "TissueError",
    "UnknownEncoderError",
    "WeightsError",
    "WsipipeError",
]


class WsipipeError(Exception):
    """Base of all errors of this package.

    Args:
        problem: What happened, naming the object it happened to.
        remedy: What the user can do now; a sentence, or "".
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        stop = "" if not self.remedy or self.problem.endswith((".", "!", "?")) else "."
        return f"{self.problem}{stop} {self.remedy}".strip()


class SlideError(WsipipeError):
    """One slide cannot be used. `path` is the slide."""

    default_remedy: ClassVar[str] = "Leave the slide out, or replace it by an intact copy."

    def __init__(self, path: str | Path, problem: str, remedy: str | None = None) -> None:
        super().__init__(f"{path}: {problem}", self.default_remedy if remedy is None else remedy)
        self.path = str(path)
        self.reason = problem

    def __reduce__(self) -> tuple[type[SlideError], tuple[str, str, str]]:
        return type(self), (self.path, self.reason, self.remedy)


class SlideOpenError(SlideError):
    """The file is not a slide that any reader opens."""


class MissingMppError(SlideError):
    """No source says how many µm a pixel has."""

    default_remedy = (
        "Give it with --slide-mpp, or in a manifest with a column 'mpp'; it is never guessed."
    )

    def __init__(
        self,
        path: str | Path,
        problem: str = "the slide does not say its resolution (mpp)",
        remedy: str | None = None,
    ) -> None:
        super().__init__(path, problem, remedy)


class ResolutionError(SlideError):
    """The slide is coarser than the target mpp by more than `--max-upsample`."""

    default_remedy = (
        "Choose a coarser --mpp (with --allow-off-card), raise --max-upsample, "
        "or correct a wrong resolution with --slide-mpp."
    )


class ReadError(SlideError):
    """Pixels of the slide cannot be decoded."""

    default_remedy = (
        "Copy the slide again from its source; --max-bad-tiles F accepts a share of bad tiles."
    )


class TissueError(SlideError):
    """Tissue detection does not apply to this slide, or a given mask does not fit it."""

    default_remedy = "Use --tissue none to take the whole slide, or give a mask with --tissue DIR."


class EncoderError(WsipipeError):
    """An encoder cannot be used. `name` is the encoder."""

    def __init__(self, name: str, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.name = name

    def __reduce__(self) -> tuple[type[EncoderError], tuple[str, str, str]]:
        return type(self), (self.name, self.problem, self.remedy)


class ModelError(EncoderError):
    """A network failed on a batch: a bug of the model's code, not of a slide."""

    exit_code = 70


class UnknownEncoderError(EncoderError):
    """No encoder has this name."""

    exit_code = 2


class GatedEncoderError(EncoderError):
    """The makers ask that their terms are accepted before the weights are given out."""

    exit_code = 3


class WeightsError(EncoderError):
    """Weights are missing, damaged, or do not fit the architecture."""

    exit_code = 3


class OffCardError(EncoderError):
    """Another mpp or tile size than the encoder's card declares, without being asked for."""

    exit_code = 2


class StoreError(WsipipeError):
    """A file of a run cannot be used. `path` is the file."""

    def __init__(self, path: str | Path, problem: str, remedy: str = "") -> None:
        super().__init__(f"{path}: {problem}", remedy)
        self.path = str(path)
        self.reason = problem

    def __reduce__(self) -> tuple[type[StoreError], tuple[str, ...]]:
        return type(self), (self.path, self.reason, self.remedy)


class IdentityMismatchError(StoreError):
    """A finished file was made with other settings. `fields` maps name -> (stored, wanted)."""

    exit_code = 2

    def __init__(self, path: str | Path, fields: Mapping[str, tuple[object, object]]) -> None:
        listed = "; ".join(f"{k}: {old!r} there, {new!r} asked" for k, (old, new) in fields.items())
        super().__init__(
            path,
            f"made with other settings ({listed}).",
            "Use the former settings, another --out, or --recompute to replace the file.",
        )
        self.fields = dict(fields)

    def __reduce__(self) -> tuple[type[StoreError], tuple[str, ...]]:
        return type(self), (self.path, self.fields)  # type: ignore[return-value]


class CorruptFileError(StoreError):
    """A file is damaged or is not what its name says."""


class OutputError(StoreError):
    """The disk is full or the output cannot be written: nothing is gained by going on."""

    exit_code = 4


class ConfigError(WsipipeError):
    """A flag, a configuration file or a manifest is wrong; nothing was started."""

    exit_code = 2


class MissingExtraError(WsipipeError):
    """An optional package is needed. `extra` names the extra that brings it."""

    exit_code = 3

    def __init__(self, extra: str, purpose: str, packages: Sequence[str] = ()) -> None:
        named = f" ({', '.join(packages)})" if packages else ""
        super().__init__(
            f"{purpose} needs packages that are not installed{named}.",
            f"Install them from the checkout: pip install -e '.[{extra}]'",
        )
        self.extra = extra
        self.purpose = purpose
        self.packages = tuple(packages)

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.extra, self.purpose, self.packages)


class Drained(WsipipeError):
    """A signal asked the run to stop. What is published is whole; the same command goes on."""

    exit_code = 75

    def __init__(self, signal_name: str) -> None:
        super().__init__(
            f"Stopped by {signal_name}: finished files are whole.",
            "Run the same command again to go on.",
        )
        self.signal_name = signal_name

    def __reduce__(self) -> tuple[type[Drained], tuple[str]]:
        return type(self), (self.signal_name,)
