"""The networks behind `TissueCard`s: built, loaded with checked weights, run over a picture."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsipipe.errors import ConfigError, EncoderError, MissingExtraError, WeightsError
from wsipipe.tissue.cards import TissueCard
from wsipipe.types import TileArray
from wsipipe.weights import Located, Source, check_fit, fetch, in_folder, local_file, read_state

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_network", "load_network", "locate_weights", "probabilities"]

# Both published families see squares of this size.
INPUT_PX = 512


@functools.lru_cache(maxsize=8)
def locate_weights(card: TissueCard, path: str | None) -> Located:
    """The checkpoint of a card: the given file, else the hub's cache, else the hub.

    Raises:
        WeightsError, GatedEncoderError: It cannot be had; says how to get it.
    """
    try:
        return _located(card, path)
    except EncoderError as error:
        # The weights module speaks of encoders and of `pull`, which knows encoders only.
        raise type(error)(
            card.name,
            error.problem.replace("Encoder ", "Tissue network ", 1),
            f"Give a file with --tissue '{card.name}?weights=FILE', or let a machine with network "
            f"fetch it and carry the hub's cache (HF_HUB_CACHE) here. Source: {card.page}",
        ) from error


def _located(card: TissueCard, path: str | None) -> Located:
    if path is not None:
        return local_file(path, card.name)
    if card.folder is not None:
        return in_folder(Path(card.folder), (card.file,), card.name)
    return fetch(
        Source(
            name=card.name,
            repo=card.repo,
            revision=card.revision,
            files=(card.file,),
            sha256=card.sha256,
            page=card.page,
            licence=card.licence,
            gated=card.gated,
        )
    )


def build_network(card: TissueCard) -> nn.Module:
    """The network of a card, with random weights.

    Raises:
        MissingExtraError: segmentation-models-pytorch is needed and not installed.
        ConfigError: Unknown architecture.
    """
    if card.architecture == "deeplabv3_resnet50":
        return _deeplab(card)
    if card.architecture not in ("unet", "unetplusplus"):
        raise ConfigError(
            f"Tissue network {card.name}: unknown architecture {card.architecture!r}.",
            "Known: deeplabv3_resnet50, unet, unetplusplus.",
        )
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise MissingExtraError(
            "tissue", f"Tissue network {card.name}", ["segmentation-models-pytorch"]
        ) from error
    build = smp.Unet if card.architecture == "unet" else smp.UnetPlusPlus
    network: nn.Module = build(
        encoder_name=card.backbone, encoder_weights=None, classes=card.classes, activation=None
    )
    return network


def _deeplab(card: TissueCard) -> nn.Module:
    from torch import Tensor, nn
    from torchvision.models.segmentation import deeplabv3_resnet50

    class OutOnly(nn.Module):
        """torchvision's networks return a dict; the published keys have no such wrapper."""

        def __init__(self) -> None:
            super().__init__()
            whole = deeplabv3_resnet50(
                weights=None, weights_backbone=None, num_classes=card.classes, aux_loss=False
            )
            self.backbone, self.classifier = whole.backbone, whole.classifier

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.classifier(self.backbone(x)["out"])
            return nn.functional.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=False)

    return OutOnly()


@functools.lru_cache(maxsize=1)
def load_network(card: TissueCard, located: Located, device: str) -> nn.Module:
    """A network with its weights, ready to run; the last one is kept for the next slide.

    Raises:
        WeightsError: The checkpoint is damaged, holds Python objects, or does not fit.
    """
    network = build_network(card)
    state: dict[str, Any] = {}
    for key, value in read_state(Path(located.path), card.name, card.unwrap).items():
        # Auxiliary heads serve training only.
        if key.removeprefix(card.prefix).startswith("aux_classifier"):
            continue
        state[key.removeprefix(card.prefix)] = value
    check_fit(card.name, network, state)
    network.load_state_dict(state)
    return network.eval().to(device)


def probabilities(
    card: TissueCard, network: nn.Module, pictures: list[TileArray], device: str
) -> NDArray[np.float32]:
    """Class probabilities of pictures.

    Args:
        card: Of the network.
        network: As `load_network` returns it.
        pictures: Each (INPUT_PX, INPUT_PX, 3) uint8 at the card's mpp.
        device: Where the network is.

    Returns:
        (B, classes, INPUT_PX, INPUT_PX) float32.

    Raises:
        WeightsError: The network gives numbers that are not finite.
    """
    import torch

    if card.jpeg_quality is not None:
        pictures = [_as_jpeg(p, card.jpeg_quality) for p in pictures]
    batch = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (card.mean, card.std))
    with torch.inference_mode():
        result = torch.softmax(network((batch - mean) / std), dim=1)
    if not bool(torch.isfinite(result).all()):
        raise WeightsError(
            card.name,
            f"Tissue network {card.name} gives numbers that are not finite.",
            "Check its weights.",
        )
    values: NDArray[np.float32] = result.float().cpu().numpy()
    return values


def _as_jpeg(picture: TileArray, quality: int) -> TileArray:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
