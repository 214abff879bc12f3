"""Seamless textures of five kinds of tissue, as densities of haematoxylin and eosin.

Nuclei are rendered once as small sprites and pasted by the thousand; glands, fat cells and fibres
are drawn around them. Sizes and densities are those of H&E sections of human colon, in µm and
per mm² (small lymphocytes about 6 µm across, epithelial nuclei 6 to 8 µm, fat cells about 60 µm).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsipipe.synth.noise import Field, smooth_noise

CLASSES = ("stroma", "glands", "lymphoid", "fat", "tumour")
TUMOUR = CLASSES.index("tumour")
BANKS = 3
# One unit of density is 85 grey levels of a texture, so that 8 bits hold densities up to 3.
DENSITY = 85.0

Texture = npt.NDArray[np.uint8]
_ANGLES = 12


@dataclass(frozen=True)
class Bank:
    """Textures of one resolution.

    Attributes:
        period_px: Period of all textures, a power of two.
        tissue: One (period, period, 2) uint8 array a class of `CLASSES`: haematoxylin, eosin, each
            as density times `DENSITY`.
        jitter: (period, period) float32, fine noise that roughens boundaries.
    """

    period_px: int
    tissue: tuple[Texture, ...]
    jitter: Field


@functools.lru_cache(maxsize=4)
def texture_bank(mpp: float, number: int) -> Bank:
    """Draw the textures of one resolution; `number` (0 to `BANKS` - 1) picks among variants."""
    # About 1 mm, and never so many nuclei that drawing them takes long.
    period = next((p for p in (2048, 1024, 512, 256) if p * mpp <= 1320), 128)
    return _Draw(np.random.default_rng((number, round(mpp * 1e6))), mpp, period).bank()


class _Draw:
    """Draws one bank. All canvases have a margin that is folded back, which makes them seamless."""

    def __init__(self, rng: np.random.Generator, mpp: float, period: int) -> None:
        self.rng, self.mpp, self.period = rng, mpp, period
        self.margin = min(period // 2, max(8, int(90 / mpp)))
        um = 1.0 / mpp
        shape = (period, period)
        self.fine = smooth_noise(rng, shape, max(0.6, 0.55 * um), wrap=True)
        self.medium = smooth_noise(rng, shape, max(1.0, 3.5 * um), wrap=True)
        self.coarse = smooth_noise(rng, shape, max(2.0, 28 * um), wrap=True)
        straight = smooth_noise(rng, shape, (max(0.6, 0.8 * um), max(2.0, 14 * um)), wrap=True)
        bend = smooth_noise(rng, shape, 26 * um, wrap=True) * 11 * um
        rows, columns = np.mgrid[0:period, 0:period].astype(np.float32)
        self.fibres = cv2.remap(
            np.pad(straight, ((0, 1), (0, 1)), mode="wrap"),
            columns,
            (rows + bend) % period,
            cv2.INTER_LINEAR,
        )
        # Clefts between collagen bundles are white.
        self.bundles = 1 / (1 + np.exp(-4 * (self.fibres + 0.5 * self.medium + 1.3)))

    def bank(self) -> Bank:
        drawn = (self._stroma(), self._glands(), self._lymphoid(), self._fat(), self._tumour())
        tissue = tuple(
            np.clip(np.stack(pair, axis=-1) * DENSITY, 0, 255).astype(np.uint8) for pair in drawn
        )
        return Bank(self.period, tissue, self.medium)

    def _stroma(self) -> tuple[Field, Field]:
        nuclei = self._canvas()
        self._scatter(nuclei, per_mm2=1100, radius_um=2.6, spread_um=0.4, stretch=(1.4, 2.1))
        eosin = (0.36 + 0.09 * self.fibres + 0.05 * self.fine) * self.bundles
        return self._fold(nuclei) * 0.85 + 0.03, eosin

    def _glands(self) -> tuple[Field, Field]:
        nuclei = self._canvas()
        lumen, epithelium = self._gland_field(nuclei, pitch_um=108, disorder=0.0)
        outside = (lumen + epithelium) < 0.5
        self._scatter(nuclei, 2400, 2.7, 0.35, (1.0, 1.35), allowed=outside)
        mucin = 0.16 + 0.05 * self.medium + 0.04 * self.fine
        lamina = (0.30 + 0.08 * self.fibres + 0.04 * self.fine) * self.bundles
        eosin = np.where(epithelium > 0.5, mucin, lamina) * (1 - 0.97 * lumen)
        haematoxylin = self._fold(nuclei) + 0.09 * epithelium + 0.02 * (1 - lumen)
        return haematoxylin, eosin.astype(np.float32)

    def _lymphoid(self) -> tuple[Field, Field]:
        nuclei = self._canvas()
        self._scatter(nuclei, 10500, 3.0, 0.25, (1.0, 1.12), darkness=(0.95, 1.3))
        return self._fold(nuclei) + 0.08, 0.15 + 0.03 * self.fine + 0.02 * self.medium

    def _fat(self) -> tuple[Field, Field]:
        wall = self._voronoi_walls(cell_um=62, wall_um=1.6)
        nuclei = self._canvas()
        self._scatter(nuclei, 900, 2.3, 0.3, (1.6, 2.2), allowed=wall > 0.35)
        eosin = 0.30 * wall * (1 + 0.15 * self.medium) + 0.004
        return self._fold(nuclei) + 0.01, eosin.astype(np.float32)

    def _tumour(self) -> tuple[Field, Field]:
        # Solid and gland-forming nests of large, dark, unequal nuclei between bands of stroma.
        nuclei = self._canvas()
        lumen, epithelium = self._gland_field(nuclei, pitch_um=84, disorder=0.7)
        band = self.coarse > 1.15
        solid = ~band & ((lumen + epithelium) < 0.5)
        self._scatter(nuclei, 4300, 4.3, 1.1, (1.0, 1.45), darkness=(0.6, 1.25), allowed=solid)
        cell = 0.26 + 0.05 * self.medium
        collagen = (0.33 + 0.08 * self.fibres) * self.bundles
        eosin = (np.where(band, collagen, cell) + 0.035 * self.fine) * (1 - 0.95 * lumen)
        haematoxylin = self._fold(nuclei) * np.where(band, 0.8, 1.0) + 0.12 * ~band * (1 - lumen)
        return haematoxylin.astype(np.float32), eosin.astype(np.float32)

    def _canvas(self) -> Texture:
        side = self.period + 2 * self.margin
        return np.zeros((side, side), np.uint8)

    def _fold(self, canvas: Texture) -> Field:
        """Wrap the margin of a canvas onto the opposite side; densities."""
        m, p = self.margin, self.period
        canvas[m : 2 * m] = np.maximum(canvas[m : 2 * m], canvas[m + p :])
        canvas[p : m + p] = np.maximum(canvas[p : m + p], canvas[:m])
        canvas[:, m : 2 * m] = np.maximum(canvas[:, m : 2 * m], canvas[:, m + p :])
        canvas[:, p : m + p] = np.maximum(canvas[:, p : m + p], canvas[:, :m])
        return canvas[m : m + p, m : m + p].astype(np.float32) / np.float32(DENSITY)

    def _paste(self, canvas: Texture, sprite: Texture, y: float, x: float) -> None:
        """Blend a sprite, centred on texture pixel (y, x), into a canvas by maximum."""
        half = sprite.shape[0] // 2
        top, left = int(y) + self.margin - half, int(x) + self.margin - half
        if top < 0 or left < 0:
            return
        view = canvas[top : top + sprite.shape[0], left : left + sprite.shape[1]]
        if view.shape == sprite.shape:
            np.maximum(view, sprite, out=view)

    def _nuclei(
        self, radius_um: float, spread_um: float, stretch: tuple[float, float],
        darkness: tuple[float, float], per_angle: int = 5,
    ) -> list[list[Texture]]:  # fmt: skip
        """Sprites of nuclei: `per_angle` variants at each of `_ANGLES` orientations."""
        return [
            [
                self._nucleus(
                    max(self.rng.normal(radius_um, spread_um), radius_um * 0.5) / self.mpp,
                    self.rng.uniform(*stretch),
                    np.pi * angle / _ANGLES,
                    self.rng.uniform(*darkness),
                )
                for _ in range(per_angle)
            ]
            for angle in range(_ANGLES)
        ]

    def _nucleus(self, radius: float, stretch: float, angle: float, darkness: float) -> Texture:
        """One nucleus, slightly irregular, with a darker rim and clumped chromatin."""
        half = int(radius * max(1.35, stretch)) + 2
        y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle)
        turn = np.arctan2(across, along)
        phase = self.rng.uniform(0, 2 * np.pi, 2)
        bumps = 1 + 0.08 * np.sin(2 * turn + phase[0]) + 0.06 * np.sin(3 * turn + phase[1])
        r = np.hypot(along / stretch, across * stretch**0.5) / max(radius, 0.3) * bumps
        inside = np.clip((1.05 - r) * max(radius, 0.6) + 0.3, 0, 1)
        rim = 0.76 + 0.3 * np.clip(r, 0, 1) ** 3
        clumps = smooth_noise(self.rng, r.shape, max(radius * 0.16, 0.6)) if radius > 2 else 0.0
        body = darkness * inside * rim * (1 + 0.17 * clumps)
        return np.asarray(np.clip(body * DENSITY, 0, 255), np.uint8)

    def _scatter(
        self, canvas: Texture, per_mm2: float, radius_um: float, spread_um: float,
        stretch: tuple[float, float], darkness: tuple[float, float] = (0.75, 1.15),
        allowed: npt.NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        """Paste nuclei on a jittered grid (few overlaps), where `allowed`."""
        sprites = self._nuclei(radius_um, spread_um, stretch, darkness)
        count = int(per_mm2 * (self.period * self.mpp / 1000) ** 2)
        side = int(np.ceil(np.sqrt(count)))
        cells = self.rng.permutation(side * side)[:count]
        shift = self.rng.uniform(0.05, 0.95, (2, count))
        ys = (cells // side + shift[0]) * self.period / side
        xs = (cells % side + shift[1]) * self.period / side
        if allowed is not None:
            keep = allowed[ys.astype(int), xs.astype(int)]
            ys, xs = ys[keep], xs[keep]
        picks = self.rng.integers(_ANGLES * len(sprites[0]), size=len(ys))
        flat = [sprite for group in sprites for sprite in group]
        for y, x, pick in zip(ys.tolist(), xs.tolist(), picks.tolist(), strict=True):
            self._paste(canvas, flat[pick], y, x)

    def _gland_field(
        self, nuclei: Texture, *, pitch_um: float, disorder: float
    ) -> tuple[Field, Field]:
        """Glands on a jittered lattice: white lumen, ring of epithelium, nuclei at its base.

        Disorder in [0, 1] makes them crowded, unequal and several nuclei deep.
        """
        rng, um = self.rng, 1.0 / self.mpp
        lumens, glands = self._canvas(), self._canvas()
        nucleus_um = 2.9 + 1.2 * disorder
        sprites = self._nuclei(nucleus_um, 0.3 + disorder * 0.7, (1.25, 1.6), (0.85, 1.2))
        side = max(1, round(self.period / um / pitch_um))
        step = self.period / side
        turns = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        for cell in range(side * side):
            jitter = rng.uniform(-0.2, 0.2, 2) * (1 + disorder)
            cy = (cell // side + 0.5 + jitter[0]) * step
            cx = (cell % side + 0.5 + 0.5 * (cell // side % 2) + jitter[1]) * step % self.period
            inner = (13 - 3 * disorder) * um * rng.uniform(0.55, 1.3 + disorder)
            outer = inner + (23 - 2 * disorder) * um
            stretch, lean = rng.uniform(1, 1.25 + disorder), rng.uniform(0, np.pi)
            phase = rng.uniform(0, 2 * np.pi, 2)
            wobble = 1 + (0.05 + 0.09 * disorder) * (
                np.sin(2 * turns + phase[0]) + np.sin(5 * turns + phase[1])
            )

            def outline(
                radius: float, cy: float = cy, cx: float = cx, stretch: float = stretch,
                lean: float = lean, wobble: npt.NDArray[np.float64] = wobble,
            ) -> npt.NDArray[np.float64]:  # fmt: skip
                a = radius * wobble * np.cos(turns) * stretch
                b = radius * wobble * np.sin(turns) / stretch**0.5
                xs = cx + a * np.cos(lean) - b * np.sin(lean)
                ys = cy + a * np.sin(lean) + b * np.cos(lean)
                return np.stack([xs, ys], axis=1) + self.margin

            cv2.fillPoly(glands, [np.round(outline(outer)).astype(np.int32)], 85, cv2.LINE_AA)
            cv2.fillPoly(lumens, [np.round(outline(inner)).astype(np.int32)], 85, cv2.LINE_AA)
            for layer in range(1 + int(disorder > 0.3)):
                ring = outline(outer - nucleus_um * um * (1.4 + 1.8 * layer))
                closed = np.vstack([ring, ring[:1]])
                length = np.hypot(*np.diff(closed, axis=0).T)
                travelled = np.concatenate([[0.0], np.cumsum(length)])
                count = max(3, int(travelled[-1] / (nucleus_um * um * 2.0)))
                at = (np.arange(count) + rng.uniform(-0.2, 0.2, count)) * travelled[-1] / count
                xs = np.interp(at, travelled, closed[:, 0])
                ys = np.interp(at, travelled, closed[:, 1])
                radial = np.arctan2(ys - cy - self.margin, xs - cx - self.margin)
                drift = 1 + rng.normal(0, 0.02 + 0.05 * disorder, count)
                for x, y, angle, d in zip(xs, ys, radial, drift, strict=True):
                    group = sprites[round(angle / np.pi * _ANGLES) % _ANGLES]
                    px = cx + (x - self.margin - cx) * d
                    py = cy + (y - self.margin - cy) * d
                    self._paste(nuclei, group[int(rng.integers(len(group)))], py, px)
        lumen, gland = np.minimum(self._fold(lumens), 1), np.minimum(self._fold(glands), 1)
        return lumen, np.clip(gland - lumen, 0, 1)

    def _voronoi_walls(self, cell_um: float, wall_um: float) -> Field:
        """Thin walls between round cells, in [0, 1]."""
        scale = 2 if self.mpp < 1 else 1
        side = self.period // scale
        per_side = max(1, round(self.period * self.mpp / cell_um))
        cells = np.mgrid[0:per_side, 0:per_side].reshape(2, -1).T
        offset = 0.5 * (cells[:, :1] % 2) * np.array([[0, 1]])
        points = cells + 0.5 + offset + self.rng.uniform(-0.3, 0.3, cells.shape)
        points = (points / per_side * side) % side
        margin = min(side, int(2.5 * side / per_side) + 2)
        seeds = np.full((side + 2 * margin, side + 2 * margin), 255, np.uint8)
        for dy in (-side, 0, side):
            for dx in (-side, 0, side):
                ys, xs = (points + np.array([dy + margin, dx + margin])).astype(int).T
                ok = (ys >= 0) & (xs >= 0) & (ys < seeds.shape[0]) & (xs < seeds.shape[1])
                seeds[ys[ok], xs[ok]] = 0
        _, label = cv2.distanceTransformWithLabels(
            seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        edge = np.zeros(label.shape, np.float32)
        edge[:, 1:] += label[:, 1:] != label[:, :-1]
        edge[1:] += label[1:] != label[:-1]
        thick = max(0.6, wall_um / self.mpp / scale / 2)
        wall = cv2.GaussianBlur(np.minimum(edge, 1), (0, 0), thick) * thick * 2.5
        wall = np.minimum(wall, 1)[margin : margin + side, margin : margin + side]
        if scale > 1:
            large = cv2.resize(
                np.pad(wall, 2, mode="wrap"),
                None,
                fx=scale,
                fy=scale,
                interpolation=cv2.INTER_LINEAR,
            )
            wall = large[2 * scale : -2 * scale, 2 * scale : -2 * scale]
        return np.asarray(wall, np.float32)
