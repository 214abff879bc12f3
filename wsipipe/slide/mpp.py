"""How many µm a pixel has: the chain of sources, each judged, none silently."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from wsipipe.errors import ConfigError
from wsipipe.slide.reader import MppClaim

__all__ = ["MppResult", "check_user_mpp", "claim", "objective_claim", "parse_mpp", "resolve_mpp"]

# Outside this window a value is a default of some software (72 dpi is 352.8 µm), not a pixel size.
MIN_MPP: Final = Fraction("0.05")
MAX_MPP: Final = Fraction(20)
_DISAGREE: Final = Fraction(1, 10)
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d{1,3})?")


@dataclass(frozen=True, slots=True)
class MppResult:
    """The pixel size that is used, where it came from and what was noticed on the way.

    Attributes:
        xy: µm per level-0 pixel (x, y), exact; None where no source has a credible value.
        source: Name of the source, or "none".
        notes: Sentences: values set aside, sources that disagree, guesses.
    """

    xy: tuple[Fraction, Fraction] | None
    source: str
    notes: tuple[str, ...]


def parse_mpp(text: str | float | Fraction | None) -> Fraction | None:
    """The rational number that a text says, or None where it is no finite number.

    Long binary expansions ("28.969000000000001") mean their shortest decimal text (28.969), so
    that a reader's rounding does not enter the geometry. A decimal comma is read as a point.
    """
    if text is None:
        return None
    if isinstance(text, Fraction):
        value: float = float(text)
    else:
        found = _NUMBER.fullmatch(str(text).strip())
        if found is None:
            return None
        value = float(found.group().replace(",", "."))
    if not abs(value) < 1e9:
        return None
    return Fraction(repr(value))


def claim(
    source: str, x: str | float | Fraction | None, y: str | float | Fraction | None = None
) -> MppClaim:
    """A claim from one or two texts; y defaults to x."""
    text = str(x) if y is None or y == x else f"{x} x {y}"
    return MppClaim(source, parse_mpp(x), parse_mpp(x if y is None else y), text)


def objective_claim(source: str, power: str | float | None) -> MppClaim | None:
    """The guess that an objective of power p has about 10/p µm per pixel."""
    value = parse_mpp(power)
    if value is None or value <= 0:
        return None
    mpp = parse_mpp(10 / value)
    return MppClaim(source, mpp, mpp, f"{power}x", guess=True)


def check_user_mpp(mpp: float | str | Fraction) -> Fraction:
    """The user's mpp as an exact number.

    Raises:
        ConfigError: It is no number, or outside 0.05 to 20 µm.
    """
    value = parse_mpp(mpp)
    if value is None or not MIN_MPP <= value <= MAX_MPP:
        raise ConfigError(
            f"A slide mpp of {mpp} is not between 0.05 and 20 µm per pixel.",
            "Give µm per pixel of the finest level, for example 0.25 for a 40x scan.",
        )
    return value


def resolve_mpp(
    claims: Sequence[MppClaim], user: float | str | Fraction | None = None
) -> MppResult:
    """Take the first credible claim; note what was set aside and what disagrees.

    Args:
        claims: Most trusted source first.
        user: --slide-mpp or the manifest; wins over everything.

    Raises:
        ConfigError: The user's value is outside 0.05 to 20.
    """
    notes: list[str] = []
    credible: list[tuple[str, tuple[Fraction, Fraction], bool]] = []
    if user is not None:
        value = check_user_mpp(user)
        credible.append(("user", (value, value), False))
    for said in claims:
        if said.x is None or said.y is None:
            notes.append(f"{said.source} says {said.text!r}, which is no number: set aside")
        elif not all(MIN_MPP <= value <= MAX_MPP for value in (said.x, said.y)):
            notes.append(
                f"{said.source} says {_show(said.x, said.y)} µm, outside 0.05 to 20: set aside"
            )
        else:
            credible.append((said.source, (said.x, said.y), said.guess))
    if not credible:
        return MppResult(None, "none", tuple(notes))
    source, xy, guess = credible[0]
    if guess:
        notes.append(f"{_show(*xy)} µm is a guess from the objective's power ({source})")
    for other, other_xy, _ in credible[1:]:
        if any(abs(a / b - 1) > _DISAGREE for a, b in zip(other_xy, xy, strict=True)):
            notes.append(
                f"{source} says {_show(*xy)} µm, {other} says {_show(*other_xy)} µm: "
                f"{source} is used"
            )
    if abs(xy[0] / xy[1] - 1) > Fraction(1, 1000):
        notes.append(f"pixels are not square: {_show(*xy)} µm")
    return MppResult(xy, source, tuple(notes))


def _show(x: Fraction, y: Fraction) -> str:
    return f"{float(x):g}" if x == y else f"{float(x):g} x {float(y):g}"
