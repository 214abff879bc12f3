"""From a scene to pixels: textures, stains after Beer and Lambert, artefacts, grain.

A window may be painted anywhere and in any order: the pixels do not depend on the window. About
20 million pixels of tissue a second and core, with compression; that speed is why densities are
8-bit pairs that one table turns into colours, and why texture positions are fixed-point numbers.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from wsipipe.synth.morphology import DENSITY, TUMOUR
from wsipipe.synth.scene import Scene

Pixels = npt.NDArray[np.uint8]
_GRAIN_PX = 1024
# Halo of pixels around a window whose inside is blurred.
_HALO_PX = 24
_OD_PER_DENSITY = 2.1
# Beyond this distance from the outline nothing of the other side is seen.
_RIM_UM = 12.0


class Painter:
    """Paints windows of one scene; safe to use from several threads."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._colours = _colour_table(scene)
        self._rim = _gradient(scene) * _RIM_UM
        rng = np.random.default_rng((scene.seed, 1))
        grain = rng.normal(0, 1.7, (_GRAIN_PX, _GRAIN_PX, 1)) + rng.normal(
            0, 0.5, (_GRAIN_PX, _GRAIN_PX, 3)
        )
        grain = np.round(grain).astype(np.int16)
        self._brighter = np.clip(grain, 0, None).astype(np.uint8)
        self._darker = np.clip(-grain, 0, None).astype(np.uint8)
        # One column and row of the other side: bilinear reading across the seam.
        self._textures = [
            np.pad(t, ((0, 1), (0, 1), (0, 0)), mode="wrap") for t in scene.bank.tissue
        ]
        self._jitter = np.pad(scene.bank.jitter, ((0, 1), (0, 1)), mode="wrap")

    def is_blank(self, y: int, x: int, height: int, width: int) -> bool:
        """Whether the window shows empty glass only."""
        scene, reader = self.scene, self.scene.enlarger
        for field in (scene.tissue, *(scene.artefacts.get(n) for n in ("pen",))):
            if field is not None and reader.patch(field, y, x, height, width)[0].max() > -self._rim:
                return False
        return True

    def window(self, y: int, x: int, height: int, width: int) -> Pixels:
        """Level-0 pixels of a window.

        Returns:
            (height, width, 3) uint8 RGB.
        """
        blur = self.scene.artefacts.get("blur")
        reader = self.scene.enlarger
        if blur is None or reader.patch(blur, y, x, height, width)[0].max() <= 0:
            return self._grain(self._ink(self._sharp(y, x, height, width), y, x), y, x)
        h = _HALO_PX
        sharp = self._sharp(y - h, x - h, height + 2 * h, width + 2 * h)
        soft = cv2.GaussianBlur(sharp, (2 * h + 1, 2 * h + 1), 3.2 / self.scene.mpp / 2)
        weight = np.clip(reader.window(blur, y, x, height, width) * 12, 0, 1)[..., None]
        inner = np.s_[h:-h, h:-h]
        mixed = sharp[inner] * (1 - weight) + soft[inner] * weight
        return self._grain(self._ink(np.round(mixed).astype(np.uint8), y, x), y, x)

    def _sharp(self, y: int, x: int, height: int, width: int) -> Pixels:
        """Tissue on glass, without ink and grain."""
        scene, reader = self.scene, self.scene.enlarger
        tissue = reader.patch(scene.tissue, y, x, height, width)[0]
        if tissue.max() <= -self._rim:
            return np.broadcast_to(
                np.array(scene.stain.background, np.uint8), (height, width, 3)
            ).copy()
        whole, fraction = self._positions(y, x, height, width)
        jitter = cv2.remap(self._jitter, whole, None, cv2.INTER_NEAREST)
        density = self._mixed(whole, fraction, jitter, y, x, height, width)
        factor = reader.window(scene.thickness, y, x, height, width)
        if tissue.min() < self._rim:
            edge = reader.window(scene.tissue, y, x, height, width) / self._rim
            factor = factor * np.clip(edge * _RIM_UM / 2 + jitter + 0.5, 0, 1)
        fold = scene.artefacts.get("fold")
        if fold is not None and reader.patch(fold, y, x, height, width)[0].max() > 0:
            factor = factor * (
                1 + np.clip(reader.window(fold, y, x, height, width) * 4, 0, 1) * 0.9
            )
        scaled = cv2.multiply(density, cv2.merge([factor, factor]), dtype=cv2.CV_8U)
        index = scaled.view(np.uint16)[..., 0]
        colours = self._colours.take(index).view(np.uint8).reshape(height, width, 4)
        return np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGBA2RGB), np.uint8)

    def _positions(self, y: int, x: int, height: int, width: int) -> tuple[Pixels, Pixels]:
        """Texture positions in 1/32 px, as OpenCV's fixed-point maps; periodic."""
        reader, mask = self.scene.enlarger, self.scene.bank.period_px * 32 - 1
        rows = np.arange(y, y + height, dtype=np.float32)[:, None]
        columns = np.arange(x, x + width, dtype=np.float32)[None, :]
        v = ((reader.window(self.scene.shift[0], y, x, height, width) + rows) * 32).astype(np.int32)
        u = ((reader.window(self.scene.shift[1], y, x, height, width) + columns) * 32).astype(
            np.int32
        )
        v &= mask
        u &= mask
        whole = cv2.merge([(u >> 5).astype(np.int16), (v >> 5).astype(np.int16)])
        return whole, (((v & 31) << 5) | (u & 31)).astype(np.uint16)

    def _mixed(
        self, whole: Pixels, fraction: Pixels, jitter: npt.NDArray[np.float32],
        y: int, x: int, height: int, width: int,
    ) -> Pixels:  # fmt: skip
        """Densities (height, width, 2) uint8 of whichever kind of tissue wins at each pixel."""
        scene, reader = self.scene, self.scene.enlarger
        coarse = np.stack([reader.patch(f, y, x, height, width)[0] for f in scene.kinds])
        # A kind that is far behind at all samples of the window cannot win at any pixel.
        active = np.flatnonzero((coarse - coarse.max(axis=0)).max(axis=(1, 2)) > -0.15).tolist()
        result: Pixels | None = None
        best: npt.NDArray[np.float32] | None = None
        for kind in active:
            drawn = cv2.remap(self._textures[kind], whole, fraction, cv2.INTER_LINEAR)
            if len(active) == 1:
                return np.asarray(drawn, np.uint8)
            score = reader.window(scene.kinds[kind], y, x, height, width)
            score = score + (0.05 if kind == TUMOUR else 0.03 * kind - 0.04) * jitter
            if result is None or best is None:
                result, best = drawn, score
                continue
            wins = score > best
            best = np.maximum(best, score)
            cv2.copyTo(drawn, wins.astype(np.uint8), result)
        if result is None:
            raise AssertionError("a window has at least one kind of tissue")
        return result

    def _ink(self, pixels: Pixels, y: int, x: int) -> Pixels:
        pen = self.scene.artefacts.get("pen")
        if pen is None:
            return pixels
        height, width = pixels.shape[:2]
        if self.scene.enlarger.patch(pen, y, x, height, width)[0].max() <= 0:
            return pixels
        cover = np.clip(self.scene.enlarger.window(pen, y, x, height, width) * 8, 0, 1)
        passes = 1 - cover[..., None] * (1 - np.array(self.scene.ink, np.float32))
        return np.round(pixels * passes).astype(np.uint8)

    def _grain(self, pixels: Pixels, y: int, x: int) -> Pixels:
        """Noise of the camera: one periodic pattern, so that equal windows are equal."""
        height, width = pixels.shape[:2]
        rows = np.arange(y, y + height) % _GRAIN_PX
        result = np.empty_like(pixels)
        done = 0
        while done < width:
            start = (x + done) % _GRAIN_PX
            count = min(_GRAIN_PX - start, width - done)
            part = np.s_[:, done : done + count]
            if rows[0] <= rows[-1]:
                source = np.s_[rows[0] : rows[-1] + 1, start : start + count]
                up, down = self._brighter[source], self._darker[source]
            else:
                up = self._brighter[rows, start : start + count]
                down = self._darker[rows, start : start + count]
            result[part] = cv2.subtract(cv2.add(np.ascontiguousarray(pixels[part]), up), down)
            done += count
        return result


def _colour_table(scene: Scene) -> npt.NDArray[np.uint32]:
    """Colour, as 4 bytes R, G, B, 255, of every pair (haematoxylin + 256 * eosin)."""
    stain = scene.stain
    levels = np.arange(256) / DENSITY * _OD_PER_DENSITY
    table = np.full((256, 256, 4), 255, np.uint8)
    for channel in range(3):
        h = np.exp(-levels * stain.haematoxylin[channel] * stain.strength[0])
        e = np.exp(-levels * stain.eosin[channel] * stain.strength[1])
        table[..., channel] = np.round(stain.background[channel] * e[:, None] * h[None, :])
    return table.reshape(-1, 4).view(np.uint32)[:, 0].copy()


def _gradient(scene: Scene) -> float:
    """Mean slope of the tissue field at the outline, per µm."""
    dy, dx = np.gradient(scene.tissue)
    near = np.abs(scene.tissue) < 0.15
    slope = np.hypot(dy, dx)[near if near.any() else slice(None)]
    return float(np.mean(slope)) / (scene.step * scene.mpp)
