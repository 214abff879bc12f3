"""Views of tiles, made in batches on the device from uint8 tiles.

A crop, its flips and turns are one affine map and one sampling; brightness, contrast, saturation,
hue and greyscale are one colour matrix a tile (as NVIDIA DALI's colour twist: hue turns the chroma
plane, values are clipped once at the end).

Random numbers are drawn on the CPU for the whole batch of all processes, then each process takes
its rows: one process or eight see the same views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from wsipipe.pretrain.distributed import gather_rows
from wsipipe.pretrain.options import Crop, Views
from wsipipe.pretrain.stain import hed_jitter, lab_statistics, match_statistics, randstainna

__all__ = ["ViewBatch", "ViewMaker", "crop_boxes", "normalise", "to_float"]

_GREY = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass
class ViewBatch:
    """What a method gets for one micro-batch.

    Attributes:
        views: Global crops, each (B, 3, px, px), normalised.
        local: Local crops, each (B, 3, px, px), normalised.
        plain: (B, 3, px, px): the whole tile at the global crops' size, normalised, unchanged.
        region: (B, 3, px, px) coarser region around the tile, or None.
        labels: Arrays of the source by name ("label", "task", "text", "mask"), on the device.
    """

    views: list[Tensor]
    local: list[Tensor] = field(default_factory=list)
    plain: Tensor | None = None
    region: Tensor | None = None
    labels: dict[str, Tensor] = field(default_factory=dict)


def to_float(tiles: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in 0..1."""
    return tiles.permute(0, 3, 1, 2).contiguous().float().div_(255)


def normalise(images: Tensor, spec: Views) -> Tensor:
    """Subtract the mean and divide by the deviation of the recipe, if it has them."""
    if spec.mean is None or spec.std is None:
        return images
    mean = torch.tensor(spec.mean, device=images.device, dtype=images.dtype)[None, :, None, None]
    std = torch.tensor(spec.std, device=images.device, dtype=images.dtype)[None, :, None, None]
    return torch.addcmul(-mean / std, images, 1 / std)  # one pass over the pixels


def crop_boxes(n: int, crop: Crop, generator: torch.Generator) -> Tensor:
    """Random resized crops: (n, 4) x0, y0, width, height as shares of the tile's edge.

    Area is uniform, ratio log-uniform; of ten tries the first that fits is taken, else the tile's
    largest central part of an allowed ratio.
    """
    area = _uniform(n, 10, *crop.area, generator)
    low, high = (math.log(r) for r in crop.ratio)
    ratio = _uniform(n, 10, low, high, generator).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    first = fits.float().argmax(dim=1, keepdim=True)
    size = torch.cat([width.gather(1, first), height.gather(1, first)], dim=1)
    size = torch.where(fits.any(dim=1, keepdim=True), size, size / size.amax(1, keepdim=True))
    corner = torch.rand(n, 2, generator=generator) * (1 - size)
    centred = (1 - size) / 2
    corner = torch.where(fits.any(dim=1, keepdim=True), corner, centred)
    return torch.cat([corner, size], dim=1)


def _uniform(n: int, m: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, m, generator=generator)


class ViewMaker:
    """Makes all views of a micro-batch.

    Args:
        spec: The recipe's views.
    """

    def __init__(self, spec: Views) -> None:
        self.spec = spec

    def __call__(
        self,
        tiles: Tensor,
        *,
        generator: torch.Generator,
        rows: slice | None = None,
        total: int | None = None,
        plain: bool = False,
    ) -> ViewBatch:
        """Make views.

        Args:
            tiles: (B, H, W, 3) uint8 on the device.
            generator: On the CPU; the same state on every process.
            rows: Which rows of the joined batch these tiles are; default all.
            total: Rows of the joined batch.
            plain: Also give the unchanged tiles.
        """
        images = to_float(tiles)
        n = total or images.shape[0]
        rows = rows or slice(0, n)
        views = [
            self._view(images, self.spec.global_, min(i, 1), n, rows, generator)
            for i in range(self.spec.global_.n)
        ]
        if views:
            views[-1] = self._shuffled(views[-1], n, rows, generator)
        local = [
            self._view(images, self.spec.local, 2, n, rows, generator)
            for _ in range(self.spec.local.n)
        ]
        whole = None
        if plain:
            whole = normalise(resize(images, self.spec.global_.px), self.spec)
        return ViewBatch(views, local, whole)

    def _view(
        self,
        images: Tensor,
        crop: Crop,
        kind: int,
        n: int,
        rows: slice,
        generator: torch.Generator,
    ) -> Tensor:
        spec = self.spec
        theta = self._geometry(n, crop, generator)[rows].to(images)
        view = _sample(_shrink(images, crop), theta, crop.px, spec.rotate > 0)
        if spec.weak_first and kind == 0:
            return normalise(view, spec)
        view = self._stained(view, n, rows, generator)
        view = _coloured(view, _colour_draws(n, spec, generator)[rows].to(images))
        view = self._blurred(view, spec.blur_p[kind], n, rows, generator)
        turned = torch.rand(n, generator=generator)[rows] < spec.solarize_p[kind]
        if turned.any():
            at = turned.nonzero()[:, 0].to(view.device)
            chosen = view[at]
            view[at] = torch.minimum(chosen, 1 - chosen)  # 1 − x where x >= 0.5, else x
        return normalise(view, spec)

    def _geometry(self, n: int, crop: Crop, generator: torch.Generator) -> Tensor:
        """(n, 2, 3) maps from the crop's coordinates to the tile's, both in −1..1."""
        spec = self.spec
        box = crop_boxes(n, crop, generator)
        angle = _uniform(n, 1, -spec.rotate, spec.rotate, generator)[:, 0] * math.pi / 180
        if spec.rot90:
            quarter = torch.randint(0, 4, (n,), generator=generator)
            angle = angle + quarter * (math.pi / 2)
        flips = torch.where(torch.rand(n, 2, generator=generator) < 0.5, -1.0, 1.0)
        if "h" not in spec.flip:
            flips[:, 0] = 1
        if "v" not in spec.flip:
            flips[:, 1] = 1
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        matrix = box[:, 2:, None] * turn * flips[:, None, :]
        middle = 2 * (box[:, :2] + box[:, 2:] / 2) - 1
        return torch.cat([matrix, middle[:, :, None]], dim=2)

    def _stained(self, view: Tensor, n: int, rows: slice, generator: torch.Generator) -> Tensor:
        stain = self.spec.stain
        if stain.hed > 0:
            scale = 1 + stain.hed * (2 * torch.rand(n, 3, generator=generator) - 1)
            shift = stain.hed * (2 * torch.rand(n, 3, generator=generator) - 1)
            view = hed_jitter(view, scale[rows], shift[rows])
        if stain.randstainna > 0:
            chosen = torch.rand(n, generator=generator)[rows] < stain.randstainna
            draws = torch.randn(n, 6, generator=generator)[rows]
            if chosen.any():
                at = chosen.nonzero()[:, 0].to(view.device)
                view[at] = randstainna(view[at], draws[chosen])
        if stain.transfer > 0:
            chosen = torch.rand(n, generator=generator)[rows] < stain.transfer
            partner = torch.randperm(n, generator=generator)[rows]
            view = _transferred(view, chosen, partner)
        return view

    def _blurred(
        self, view: Tensor, p: float, n: int, rows: slice, generator: torch.Generator
    ) -> Tensor:
        if p <= 0:
            return view
        chosen = torch.rand(n, generator=generator)[rows] < p
        sigma = _uniform(n, 1, *self.spec.blur_sigma, generator)[rows, 0]
        if not chosen.any():
            return view
        at = chosen.nonzero()[:, 0].to(view.device)
        view[at] = gaussian_blur(view[at], sigma[chosen].to(view))
        return view

    def _shuffled(self, view: Tensor, n: int, rows: slice, generator: torch.Generator) -> Tensor:
        p, grid = self.spec.shuffle
        if p <= 0:
            return view
        chosen = torch.rand(n, generator=generator)[rows] < p
        order = torch.rand(n, grid * grid, generator=generator).argsort(dim=1)[rows]
        order[~chosen] = torch.arange(grid * grid)
        return patch_shuffle(view, order.to(view.device), grid)


def resize(images: Tensor, px: int) -> Tensor:
    """Antialiased bilinear resize to px x px."""
    if images.shape[-1] == px and images.shape[-2] == px:
        return images
    return F.interpolate(images, (px, px), mode="bilinear", antialias=True, align_corners=False)


def _shrink(images: Tensor, crop: Crop) -> Tensor:
    """Reduce tiles first where crops would skip pixels: plain sampling does not antialias."""
    typical = images.shape[-1] * math.sqrt(sum(crop.area) / 2)
    factor = typical / crop.px
    if factor <= 1.5:
        return images
    return resize(images, round(images.shape[-1] / factor))


def _sample(images: Tensor, theta: Tensor, px: int, turned: bool) -> Tensor:
    # As F.affine_grid, whose matrix product takes three times as long as these sums; x and y lie
    # in planes of their own, which sums and sampling go through faster than through pairs.
    at = (2 * torch.arange(px, device=images.device, dtype=images.dtype) + 1) / px - 1
    m = theta[..., None, None]
    grid = (m[:, :, 0] * at + (m[:, :, 1] * at[:, None] + m[:, :, 2])).permute(0, 2, 3, 1)
    # Only turned crops reach beyond the tile; within it both ways give the same.
    padding = "reflection" if turned else "border"
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def _colour_draws(n: int, spec: Views, generator: torch.Generator) -> Tensor:
    """(n, 4): brightness, contrast, saturation factors and hue as a share of a turn."""
    *strength, p = spec.jitter
    draws = 2 * torch.rand(n, 4, generator=generator) - 1
    draws = draws * torch.tensor(strength)
    draws[torch.rand(n, generator=generator) >= p] = 0
    draws[:, :3] += 1
    grey = torch.rand(n, generator=generator) < spec.grey
    draws[grey, 2] = 0
    return draws


def _coloured(view: Tensor, draws: Tensor) -> Tensor:
    """Apply brightness, contrast, saturation (0 = grey) and hue as one affine map of colours."""
    identity = torch.tensor([1.0, 1.0, 1.0, 0.0], device=draws.device)
    if bool((draws == identity).all()):
        return view
    brightness, contrast, saturation, hue = draws.unbind(1)
    grey = torch.tensor(_GREY, device=view.device, dtype=view.dtype)
    yiq = torch.tensor(_RGB_TO_YIQ, device=view.device, dtype=view.dtype)
    eye = torch.eye(3, device=view.device, dtype=view.dtype)
    angle = 2 * math.pi * hue
    turn = torch.zeros(len(view), 3, 3, device=view.device, dtype=view.dtype)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    hue_matrix = torch.linalg.inv(yiq) @ turn @ yiq
    to_grey = grey.expand(3, 3)
    s = saturation[:, None, None]
    matrix = hue_matrix @ (s * eye + (1 - s) * to_grey) * (contrast * brightness)[:, None, None]
    mean_grey = (view.mean(dim=(2, 3)) @ grey) * brightness
    # A constant grey is left alone by saturation and hue.
    offset = ((1 - contrast) * mean_grey)[:, None, None]
    return torch.baddbmm(offset, matrix, view.flatten(2)).clamp_(0, 1).view_as(view)


def _transferred(view: Tensor, chosen: Tensor, partner: Tensor) -> Tensor:
    from kornia.color import rgb_to_lab

    with torch.no_grad():
        mean, std = lab_statistics(rgb_to_lab(view))
        mean, std = gather_rows(mean), gather_rows(std)
    if not chosen.any():
        return view
    at = chosen.nonzero()[:, 0].to(view.device)
    source = partner[chosen].to(view.device)
    view[at] = match_statistics(view[at], mean[source], std[source])
    return view


def gaussian_blur(images: Tensor, sigma: Tensor, taps: int = 9) -> Tensor:
    """Separable Gaussian blur with its own sigma (B,) in pixels for each image."""
    b, c, h, w = images.shape
    x = torch.arange(taps, device=images.device, dtype=images.dtype) - taps // 2
    kernel = (-0.5 * (x[None] / sigma[:, None]) ** 2).exp()
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    if images.device.type == "cpu":
        return _blurred_planes(images, kernel)
    weight = kernel.repeat_interleave(c, dim=0)
    flat = F.pad(images.reshape(1, b * c, h, w), [taps // 2] * 4, mode="reflect")
    flat = F.conv2d(flat, weight[:, None, None, :], groups=b * c)
    return F.conv2d(flat, weight[:, None, :, None], groups=b * c).view(b, c, h, w)


def _blurred_planes(images: Tensor, kernel: Tensor) -> Tensor:
    # A depthwise convolution on a CPU takes 7 times as long (68 ms against 9 for 29 x 3 planes of
    # 224 px): with one channel a group nothing is left to vectorise over.
    import cv2

    blurred = torch.empty_like(images, memory_format=torch.contiguous_format)
    for image, out, weights in zip(
        images.numpy(), blurred.numpy(), kernel.double().numpy(), strict=True
    ):
        for plane, target in zip(image, out, strict=True):
            cv2.sepFilter2D(
                plane, -1, weights, weights, dst=target, borderType=cv2.BORDER_REFLECT_101
            )
    return blurred


def patch_shuffle(images: Tensor, order: Tensor, grid: int) -> Tensor:
    """Put the grid x grid parts of each image into another order.

    Args:
        images: (B, 3, H, W), H and W multiples of `grid`.
        order: (B, grid²) which part comes to each place.
        grid: Parts along an edge.
    """
    b, c, h, w = images.shape
    parts = images.view(b, c, grid, h // grid, grid, w // grid).permute(0, 2, 4, 1, 3, 5)
    parts = parts.reshape(b, grid * grid, c, h // grid, w // grid)
    parts = parts[torch.arange(b, device=images.device)[:, None], order]
    parts = parts.view(b, grid, grid, c, h // grid, w // grid).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(b, c, h, w)
