"""Everything that decides a mask besides the slide's pixels, with units, as it enters the identity.

A change of an algorithm that changes masks raises its number in `VERSIONS`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from wsipipe.errors import ConfigError

__all__ = ["CLASSICAL", "VERSIONS", "ClassicalSettings", "classical_settings", "parse_method"]

# method -> version of its algorithm.
VERSIONS = {"auto": 2, "otsu": 2, "hsv": 2, "entropy": 2, "none": 1, "geojson": 1, "neural": 1}
CLASSICAL = ("auto", "otsu", "hsv", "entropy")


@dataclass(frozen=True)
class ClassicalSettings:
    """Parameters of the detectors that need no weights.

    Attributes:
        mpp: Resolution of the thumbnail in µm per pixel; a slide that is coarser is taken as it is.
        smooth_um: Width (sigma) of the Gaussian that carries evidence over nuclei and gaps.
        close_um: Radius of the closing that joins what lies closer together than twice this.
        strand_um: Pale strands (fat) closer together than twice this make an area of tissue, where
            it touches stained tissue; 0 turns that off.
        min_tissue_mm2: Smaller specks are left out.
        min_hole_mm2: Smaller holes are filled (lumina, vessels, fat cells).
        min_pen_mm2: Smaller spots of ink colour are not taken for pen.
        pen_width_um: Narrower strokes are not taken for pen.
        pen_halo_um: Width of the pale rim that goes with a stroke.
        pen: Whether pen marks are looked for and left out.
    """

    mpp: float = 8.0
    smooth_um: float = 8.0
    close_um: float = 24.0
    strand_um: float = 48.0
    min_tissue_mm2: float = 0.01
    min_hole_mm2: float = 0.05
    min_pen_mm2: float = 0.005
    pen_width_um: float = 24.0
    pen_halo_um: float = 24.0
    pen: bool = True

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            low = 0.05 if name == "mpp" else 0
            if not isinstance(value, bool) and not low <= value < float("inf"):
                raise ConfigError(
                    f"Tissue setting {name}={value} is out of range.", f"Give {low} or more."
                )


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Take `name?key=value&key=value` apart: a method and its settings.

    Values are numbers, true, false, or text for the settings that are text.

    >>> parse_method("auto?mpp=4&pen=false")
    ('auto', {'mpp': 4.0, 'pen': False})

    Raises:
        ConfigError: A setting is not of that form.
    """
    name, _, query = text.partition("?")
    settings: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise ConfigError(
                f"Tissue setting {item!r} is not key=value.",
                "Write for example --tissue 'auto?min_tissue_mm2=0.1&pen=false'.",
            )
        settings[key] = _value(value)
    return name, settings


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def classical_settings(method: str, given: dict[str, Any]) -> ClassicalSettings:
    """Settings of a classical method: its defaults with what was given, unknown names refused."""
    known = {f.name for f in fields(ClassicalSettings)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(
            f"Tissue method {method!r} has no setting {', '.join(unknown)}.",
            f"It has: {', '.join(sorted(known))}.",
        )
    # Only `auto` looks for pen: the others stand for what their names say.
    values: dict[str, Any] = {} if method == "auto" else {"pen": False}
    for name, value in given.items():
        if isinstance(value, bool) != (name == "pen") or isinstance(value, str):
            kind = "true or false" if name == "pen" else "a number"
            raise ConfigError(f"Tissue setting {name}={value!r} is not {kind}.", "Correct it.")
        values[name] = value if name == "pen" else float(value)
    return ClassicalSettings(**values)
