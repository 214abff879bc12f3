"""What lies where on a synthetic slide: coarse fields of tissue, kinds of tissue and artefacts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsipipe.synth.morphology import BANKS, CLASSES, TUMOUR, Bank, texture_bank
from wsipipe.synth.noise import Enlarger, Field, smooth_noise

# Ruifrok and Johnston (2001), optical densities of haematoxylin and eosin in R, G, B; eosin is
# made a little more red-absorbing, as Macenko et al. (2009) find on scanned slides.
_HAEMATOXYLIN = np.array([0.62, 0.71, 0.34])
_EOSIN = np.array([0.17, 0.84, 0.51])
ARTEFACTS = ("pen", "fold", "blur")
# Share of the ink's light that passes, R, G, B.
_INKS = {"green": (0.20, 0.62, 0.42), "blue": (0.22, 0.30, 0.72), "black": (0.16, 0.16, 0.18)}


@dataclass(frozen=True)
class Stain:
    """How a laboratory stains and a scanner sees.

    Attributes:
        background: Colour of empty glass, R, G, B.
        haematoxylin, eosin: Unit vectors of optical density in R, G, B.
        strength: Multipliers of the two stains' densities.
    """

    background: tuple[int, int, int]
    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    strength: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that the painter needs; a pixel is a function of its position alone.

    Attributes:
        width, height: Level-0 pixels.
        step: Level-0 pixels per sample of the coarse fields, whose first sample lies outside the
            image by half a step (see `Enlarger`).
        tissue: > 0 where there is tissue.
        kinds: One field a class of `CLASSES`; the largest wins.
        shift: Displacement of the textures along y and x in pixels; it hides their period.
        thickness: Factor of the stains' density, about 1.
        artefacts: Name of `ARTEFACTS` -> field > 0 where it lies.
        ink: Colour of the pen, share of light that passes.
    """

    width: int
    height: int
    mpp: float
    seed: int
    step: int
    tissue: Field
    kinds: Field
    shift: tuple[Field, Field]
    thickness: Field
    artefacts: dict[str, Field]
    ink: tuple[float, float, float]
    stain: Stain
    bank: Bank

    @property
    def enlarger(self) -> Enlarger:
        """Reader of the coarse fields at level-0 positions."""
        return Enlarger(self.step)


def draw_stain(rng: np.random.Generator, amount: float = 1.0) -> Stain:
    """A stain that differs from the usual one by about `amount` of what laboratories differ."""

    def unit(vector: npt.NDArray[np.float64]) -> tuple[float, float, float]:
        r, g, b = (np.clip(vector, 0.02, None) / np.linalg.norm(vector)).tolist()
        return r, g, b

    background = np.round(np.array([244, 243, 245]) - rng.uniform(0, 5 * amount, 3)).astype(int)
    r, g, b = background.tolist()
    haematoxylin = unit(_HAEMATOXYLIN + rng.normal(0, 0.035 * amount, 3))
    eosin = unit(_EOSIN + rng.normal(0, 0.035 * amount, 3))
    strength = np.exp(rng.normal(0, 0.10 * amount, 2)).tolist()
    return Stain((r, g, b), haematoxylin, eosin, (strength[0], strength[1]))


def draw_scene(
    width: int,
    height: int,
    mpp: float,
    seed: int,
    *,
    tumour_fraction: float,
    pieces: int,
    artefacts: tuple[str, ...],
    stain: Stain,
) -> Scene:
    """Compose a slide. The same arguments give the same scene.

    Args:
        width: Level-0 pixels.
        height: Level-0 pixels.
        mpp: µm per level-0 pixel.
        seed: Any integer >= 0.
        tumour_fraction: Share of the tissue that is tumour, in [0, 0.9].
        pieces: Pieces of tissue side by side.
        artefacts: Names of `ARTEFACTS`.
        stain: From `draw_stain`.
    """
    rng = np.random.default_rng(seed)
    step = int(np.clip(2.0 ** np.round(np.log2(32 / mpp)), 8, 128))
    shape = (-(-height // step) + 2, -(-width // step) + 2)
    extent_um = min(width, height) * mpp

    def wave(um: float) -> Field:
        """Noise of a correlation length in µm; on a small slide, in proportion to the slide."""
        um = min(um, 0.22 * extent_um * um / 900)
        return smooth_noise(rng, shape, max(um / mpp / step, 0.7))

    # Correlation lengths are capped in proportion for slides below about 4 mm.
    tissue = np.minimum(_pieces(rng, shape, width / height, pieces), _rim(shape, 0.06))
    tissue = np.minimum(tissue + 0.13 * wave(900) + 0.035 * wave(220), _rim(shape, 0.015))
    kinds = np.full((len(CLASSES), *shape), -9.0, np.float32)
    kinds[0] = 0.25 * wave(500)
    kinds[1] = 0.25 + 0.6 * wave(700)
    kinds[2] = 0.55 * wave(260) - 0.9
    kinds[3] = 0.7 * wave(600) - 0.75
    if tumour_fraction > 0:
        kinds[TUMOUR] = _tumour(
            wave(1000 if tumour_fraction > 0.05 else 320) + 0.15 * wave(160),
            tissue, kinds, tumour_fraction,
        )  # fmt: skip
    shift = (wave(1200) * (50 / mpp), wave(1200) * (50 / mpp))
    thickness = 1 + 0.07 * wave(2500)
    marks = {
        name: _artefact(name, rng, tissue, step * mpp) for name in ARTEFACTS if name in artefacts
    }
    inks = sorted(_INKS)
    return Scene(
        width, height, mpp, seed, step, tissue, kinds, shift, thickness, marks,
        _INKS[inks[int(rng.integers(len(inks)))]], stain, texture_bank(mpp, seed % BANKS),
    )  # fmt: skip


def _pieces(rng: np.random.Generator, shape: tuple[int, int], aspect: float, pieces: int) -> Field:
    """Rounded pieces side by side along the longer axis; positive inside, 0 at the edge."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    along, across = (columns, rows) if aspect >= 1 else (rows, columns)
    length, breadth = (shape[1], shape[0]) if aspect >= 1 else (shape[0], shape[1])
    field = np.full(shape, -9.0, np.float32)
    for piece in range(pieces):
        centre = length * ((piece + 0.5) / pieces + rng.uniform(-0.02, 0.02))
        middle = breadth * (0.5 + rng.uniform(-0.05, 0.05))
        a = length * 0.40 / pieces * rng.uniform(0.8, 1.0)
        b = breadth * 0.37 * rng.uniform(0.75, 1.0)
        u, v = (along - centre) / a, (across - middle) / b
        field = np.maximum(field, 1 - np.hypot(u + 0.12 * np.sin(3 * v + rng.uniform(0, 6)), v))
    return field


def _rim(shape: tuple[int, int], share: float) -> Field:
    """Negative within a share of the slide's border, so that no edge cuts tissue off."""
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) / n for n in shape)
    nearest = np.minimum(rows[:, None], columns[None, :])
    return ((nearest - share) * 8).astype(np.float32)


def _tumour(blob: Field, tissue: Field, kinds: Field, fraction: float) -> Field:
    """Score of tumour so that it wins on exactly `fraction` of the tissue's samples."""
    inside = tissue > 0
    if not inside.any():
        return np.full_like(blob, -9.0)
    blob = blob + np.minimum(tissue, 0.4)
    threshold = np.quantile(blob[inside], 1 - fraction)
    rest = kinds[:TUMOUR].max(axis=0)
    return np.asarray(rest + (blob - threshold) * 4, np.float32)


def _artefact(name: str, rng: np.random.Generator, tissue: Field, sample_um: float) -> Field:
    """Field of one artefact: positive inside, in units of about its own half width."""
    rows, columns = np.mgrid[0 : tissue.shape[0], 0 : tissue.shape[1]].astype(np.float32)
    inside = np.argwhere(tissue > 0.25)
    if not len(inside):
        inside = np.array([[tissue.shape[0] // 2, tissue.shape[1] // 2]])
    cy, cx = inside[int(rng.integers(len(inside)))]
    extent = min(tissue.shape)
    angle = rng.uniform(0, np.pi)
    along = (columns - cx) * np.cos(angle) + (rows - cy) * np.sin(angle)
    across = (rows - cy) * np.cos(angle) - (columns - cx) * np.sin(angle)
    if name == "blur":
        radius = 0.16 * extent * rng.uniform(0.8, 1.2)
        return np.asarray(1 - np.hypot(along / (1.4 * radius), across / radius), np.float32)
    if name == "fold":
        half = max(45.0 / sample_um, 0.012 * extent)
        bent = across + 0.03 * extent * np.sin(along / extent * 9)
        line = np.minimum(1 - np.abs(bent) / half, (0.30 * extent - np.abs(along)) / half)
        return np.asarray(np.minimum(line, tissue * 20), np.float32)
    # A pen stroke: a loose ring around a piece's middle, half on tissue and half beside it.
    half = max(min(300.0 / sample_um, 0.022 * extent), 1.5)
    radius = extent * rng.uniform(0.20, 0.30)
    turn = np.arctan2(across, along)
    wobble = 1 + 0.12 * np.sin(2 * turn + angle) + 0.05 * np.sin(5 * turn)
    ring = np.abs(np.hypot(along / 1.25, across) - radius * wobble)
    opening = (np.abs(turn) - 0.5) * radius / half
    return np.asarray(np.minimum(1 - ring / half, opening), np.float32)
