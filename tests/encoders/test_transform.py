"""Transforms on the device against torchvision's on PIL images, which is what the makers run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsipipe.encoders import resolve
from wsipipe.encoders.resample import resize_bytes
from wsipipe.encoders.transform import Transform


def by_torchvision(name: str, tiles: NDArray[np.uint8]) -> torch.Tensor:
    from PIL import Image
    from torchvision import transforms

    card = resolve(name)
    resample = transforms.InterpolationMode(card.interpolation)
    steps = [
        transforms.Resize(card.resize_px or card.tile_px, interpolation=resample),
        transforms.CenterCrop(card.input_px),
        transforms.ToTensor(),
    ]
    if card.mean is not None:
        steps.append(transforms.Normalize(card.mean, card.std))
    pipeline = transforms.Compose(steps)
    return torch.stack([pipeline(Image.fromarray(tile)) for tile in tiles])


@pytest.mark.parametrize(
    "name", ["phikon", "h-optimus-0", "kaiko-vits16", "plip", "lunit-dino-s8", "pathoduet-he"]
)
def test_tiles_of_the_cards_size_are_only_normalised(name: str, tiles) -> None:
    ours = Transform(resolve(name))(torch.from_numpy(tiles))
    assert float((ours - by_torchvision(name, tiles)).abs().max()) < 2e-6


@pytest.mark.parametrize(
    ("name", "edge"),
    [("prov-gigapath", 256), ("prov-gigapath", 128), ("gpfm", 512), ("conch-v1-5", 512)],
)
def test_resized_tiles_are_the_makers_to_the_level(name: str, edge: int, tiles) -> None:
    repeated = np.ascontiguousarray(np.tile(tiles, (1, 3, 3, 1))[:, :edge, :edge])
    ours = Transform(resolve(name))(torch.from_numpy(repeated))
    assert float((ours - by_torchvision(name, repeated)).abs().max()) < 2e-6


@settings(max_examples=30, deadline=None)
@given(
    before=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    after=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 99),
)
def test_any_resize_gives_the_bytes_of_pil(before, after, interpolation, seed) -> None:
    from PIL import Image

    image = np.random.default_rng(seed).integers(0, 256, (*before, 3), dtype=np.uint8)
    resample = (
        Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    )
    # Along rows, then along columns, as all of Pillow did up to 12 and as 13 does for square tiles
    # (for others it may take the cheaper order, which rounds differently).
    wide = Image.fromarray(image).resize((after[1], before[0]), resample)
    theirs = np.asarray(wide.resize(after[::-1], resample))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    ours = resize_bytes(planes, after, interpolation)[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_another_tile_size_is_resized_and_cropped_as_torchvision_does(tiles) -> None:
    wide = np.ascontiguousarray(np.concatenate([tiles, tiles], axis=2)[:, :200, :300])
    ours = Transform(resolve("uni"))(torch.from_numpy(wide))
    theirs = by_torchvision("uni", wide)
    assert ours.shape == theirs.shape == (3, 3, 224, 224)
    assert float((ours - theirs).abs().max()) < 2e-6


def test_nothing_is_resized_where_the_card_takes_any_size(tiles) -> None:
    small = np.ascontiguousarray(tiles[:, :100, :100])
    seen = Transform(resolve("texture"))(torch.from_numpy(small))
    assert torch.equal(seen, torch.from_numpy(small).permute(0, 3, 1, 2) * torch.tensor(1 / 255))


def test_wrong_tiles_are_refused(tiles) -> None:
    from wsipipe.encoders import create_encoder
    from wsipipe.errors import EncoderError

    encoder = create_encoder("timm:vit_tiny_patch16_224?pretrained=false")
    for wrong in (tiles.astype(np.float32), tiles[0], tiles.transpose(0, 3, 1, 2)):
        with pytest.raises(EncoderError, match="uint8 tiles of shape"):
            encoder(wrong)
    read_only = tiles.copy()
    read_only.flags.writeable = False
    assert torch.equal(encoder(read_only), encoder(torch.from_numpy(tiles)))
