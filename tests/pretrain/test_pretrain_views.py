"""Views: identity at zero strength, bounds of crops, the published augmentations' own numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretrain_kit import stain_nuisance_tiles
from skimage.color import rgb2lab

from wsipipe.pretrain.options import Crop, Views
from wsipipe.pretrain.recipe import load_recipe
from wsipipe.pretrain.stain import STAIN_STATISTICS, hed_jitter, randstainna
from wsipipe.pretrain.views import (
    ViewMaker,
    _coloured,
    _sample,
    crop_boxes,
    gaussian_blur,
    patch_shuffle,
    to_float,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    return torch.from_numpy(stain_nuisance_tiles(8, 0)[0])


def spec(**changes: object) -> Views:
    plain = {
        "global": {"n": 1, "px": 64, "area": [1, 1], "ratio": [1, 1]},
        "flip": "",
        "mean": None,
        "std": None,
    }
    return Views.model_validate({**plain, **changes})


def test_zero_strength_is_the_identity(tiles: torch.Tensor) -> None:
    view = ViewMaker(spec())(tiles, generator=generator()).views[0]
    torch.testing.assert_close(view, to_float(tiles), atol=2e-4, rtol=0)


def test_every_change_is_a_change(tiles: torch.Tensor) -> None:
    changes = {
        "jitter": [0.4, 0.4, 0.2, 0.1, 1.0],
        "grey": 1.0,
        "blur_p": [1, 1, 1],
        "solarize_p": [1, 1, 1],
        "stain": {"hed": 0.2},
        "shuffle": [1.0, 4],
        "rotate": 90,
    }
    for key, value in changes.items():
        view = ViewMaker(spec(**{key: value}))(tiles, generator=generator()).views[0]
        assert (view - to_float(tiles)).abs().mean() > 0.01, key
        assert view.isfinite().all()


def test_flips_and_quarter_turns_are_those_of_the_square(tiles: torch.Tensor) -> None:
    images = to_float(tiles)
    views = ViewMaker(spec(flip="hv", rot90=True))(tiles, generator=generator(3)).views[0]
    symmetries = [torch.rot90(x, k, (2, 3)) for x in (images, images.flip(3)) for k in range(4)]
    found = set()
    for i, view in enumerate(views):
        errors = [(view - s[i]).abs().max().item() for s in symmetries]
        assert min(errors) < 1e-3
        found.add(int(np.argmin(errors)))
    assert len(found) > 2


def test_crops_keep_area_ratio_and_the_tile() -> None:
    crop = Crop(area=(0.05, 0.32), ratio=(0.75, 4 / 3))
    box = crop_boxes(20_000, crop, generator()).double()
    area, ratio = box[:, 2] * box[:, 3], box[:, 2] / box[:, 3]
    assert area.min() >= 0.05 - 1e-6
    assert area.max() <= 0.32 + 1e-6
    assert area.mean() == pytest.approx(0.185, abs=0.002)  # uniform in area
    assert ratio.log().mean() == pytest.approx(0, abs=0.005)  # and in log(ratio)
    assert box[:, :2].min() >= 0
    assert (box[:, :2] + box[:, 2:]).max() <= 1 + 1e-6


def test_extended_context_translation_stays_near_native_scale() -> None:
    views = load_recipe("virchow2").views
    px = load_recipe("virchow2").sampler.px
    bound = 1.05**0.5
    for crop in (views.global_, views.local):
        box = crop_boxes(10_000, crop, generator())
        scale = crop.px / (box[:, 2:] * px)  # output pixels per source pixel
        assert scale.min() >= 0.9 / bound - 1e-3
        assert scale.max() <= 1 / 0.9 * bound + 1e-3
        edge = (box[:, 2] * box[:, 3]).sqrt() * px / crop.px
        assert edge.min() >= 0.9 - 1e-3
        assert edge.max() <= 1.1 + 1e-3


def test_a_process_makes_its_rows_of_the_joined_batch(tiles: torch.Tensor) -> None:
    recipe = load_recipe("hibou", "smoke", {"views.stain.hed": 0.1, "views.shuffle": [0.5, 4]})
    maker = ViewMaker(recipe.views)
    joined = maker(tiles, generator=generator(1))
    for rows in (slice(0, 4), slice(4, 8)):
        part = maker(tiles[rows], generator=generator(1), rows=rows, total=8)
        for a, b in zip(part.views + part.local, joined.views + joined.local, strict=True):
            torch.testing.assert_close(a, b[rows], atol=1e-5, rtol=0)


def test_hed_jitter_without_strength_is_the_identity(tiles: torch.Tensor) -> None:
    images = to_float(tiles)
    same = hed_jitter(images, torch.ones(8, 3), torch.zeros(8, 3))
    torch.testing.assert_close(same, images, atol=2e-5, rtol=0)


def test_hed_jitter_scales_optical_density_of_one_stain() -> None:
    haematoxylin = torch.tensor([0.65, 0.70, 0.29])
    image = torch.exp(-0.8 * haematoxylin).view(1, 3, 1, 1).expand(1, 3, 4, 4).contiguous()
    stronger = hed_jitter(image, torch.tensor([[1.5, 1.0, 1.0]]), torch.zeros(1, 3))
    torch.testing.assert_close(
        stronger[0, :, 0, 0], torch.exp(-1.2 * haematoxylin), atol=1e-4, rtol=0
    )


def test_randstainna_sets_lab_statistics_and_returns_rgb(tiles: torch.Tensor) -> None:
    # A rose tile of little contrast, so that nothing is clipped.
    noise = torch.randn(2, 3, 64, 64, generator=generator()) * 0.02
    images = torch.tensor([0.75, 0.55, 0.7]).view(1, 3, 1, 1) + noise
    out = randstainna(images, torch.zeros(2, 6), std_hyper=0)
    lab = rgb2lab(out[0].permute(1, 2, 0).numpy())
    table = np.array(STAIN_STATISTICS)
    want = table[:, 0] * np.array([100 / 255, 1, 1]) - np.array([0, 128, 128])
    # scikit-image is the oracle; the rest is clipping into RGB.
    np.testing.assert_allclose(lab.mean(axis=(0, 1)), want, atol=2.5)
    assert out[:, 0].mean() > out[:, 1].mean()  # pink, not the blue of swapped channels
    assert randstainna(images, torch.full((2, 6), -9.0)).isfinite().all()


def test_stain_transfer_takes_colours_from_another_tile(tiles: torch.Tensor) -> None:
    images = to_float(tiles)
    moved = ViewMaker(spec(stain={"transfer": 1.0}))(tiles, generator=generator()).views[0]
    before, after = (x.mean(dim=(2, 3)) for x in (images, moved))
    nearest = torch.cdist(after, before).argmin(dim=1)
    assert (nearest != torch.arange(8)).sum() >= 4
    assert (moved - images).abs().mean() > 0.01


def test_grey_is_grey_and_hue_leaves_it_alone() -> None:
    image = torch.rand(2, 3, 8, 8, generator=generator())
    grey = _coloured(image, torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0.3]]))
    luma = (image * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(grey, luma.expand_as(image), atol=1e-3, rtol=0)


def test_brightness_contrast_saturation_equal_torchvision() -> None:
    from torchvision.transforms import functional as tv

    image = 0.25 + 0.5 * torch.rand(1, 3, 16, 16, generator=generator())
    for draws, reference in (
        ([1.2, 1, 1, 0], tv.adjust_brightness(image, 1.2)),
        ([1, 0.7, 1, 0], tv.adjust_contrast(image, 0.7)),
        ([1, 1, 1.3, 0], tv.adjust_saturation(image, 1.3)),
    ):
        ours = _coloured(image, torch.tensor([draws]))
        torch.testing.assert_close(ours, reference, atol=2e-3, rtol=0)


def test_blur_equals_torchvision(tiles: torch.Tensor) -> None:
    from torchvision.transforms.functional import gaussian_blur as reference

    images, sigma = to_float(tiles)[:3], torch.tensor([0.5, 1.0, 1.7])
    ours = gaussian_blur(images, sigma)
    for i in range(3):
        want = reference(images[i : i + 1], [9, 9], [float(sigma[i])] * 2)
        torch.testing.assert_close(ours[i : i + 1], want, atol=1e-5, rtol=0)


def test_patch_shuffle_moves_whole_patches() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    order = torch.tensor([[3, 1, 2, 0]])
    out = patch_shuffle(image, order, 2)
    torch.testing.assert_close(out[0, 0, :2, :2], image[0, 0, 2:, 2:])
    torch.testing.assert_close(out[0, 0, :2, 2:], image[0, 0, :2, 2:])


def test_blur_probability_is_that_of_the_released_models(tiles: torch.Tensor) -> None:
    # DINOv2's published code inverts p: (1.0, 0.1, 0.5) acts as (0, 0.9, 0.5).
    views = load_recipe("dinov2").views
    many = tiles.repeat(50, 1, 1, 1)
    plain = {"jitter": [0, 0, 0, 0, 0], "grey": 0, "solarize_p": [0, 0, 0], "flip": ""}
    whole = {"n": 2, "px": 64, "area": [1, 1], "ratio": [1, 1]}
    maker = ViewMaker(views.model_validate({**views.model_dump(by_alias=True), **plain,
                                            "global": whole, "local": {"n": 0},
                                            "mean": None, "std": None,
                                            "blur_sigma": [1, 2]}))  # fmt: skip
    batch = maker(many, generator=generator())
    changed = [(v - to_float(many)).abs().amax(dim=(1, 2, 3)) > 1e-2 for v in batch.views]
    assert changed[0].float().mean() == 0
    assert changed[1].float().mean() == pytest.approx(0.9, abs=0.05)


def test_crops_of_large_tiles_are_antialiased() -> None:
    stripes = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    whole = {"n": 1, "px": 64, "area": [1, 1], "ratio": [1, 1]}
    view = ViewMaker(spec(**{"global": whole}))(stripes, generator=generator()).views[0]
    inner = view[..., 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.02, rtol=0)
    assert F.mse_loss(inner, torch.full_like(inner, 0.5)) < 1e-3


def test_crops_that_are_not_turned_askew_never_reach_beyond_the_tile() -> None:
    spec = Views.model_validate({"global": {"px": 32, "area": (0.2, 1.0)}, "rot90": True})
    draws = generator()
    theta = ViewMaker(spec)._geometry(64, spec.global_, draws)
    images = torch.rand(64, 3, 48, 48, generator=draws)
    inside, mirrored = (_sample(images, theta, 32, turned) for turned in (False, True))
    torch.testing.assert_close(inside, mirrored, atol=1e-4, rtol=0)
