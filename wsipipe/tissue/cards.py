"""Networks that find tissue: what is published about each, in one place. No torch here.

Their weights have their makers' licences, which are shown before use; none is used unless named.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from wsipipe.errors import ConfigError

__all__ = ["TISSUE_CARDS", "TissueCard", "card_of_folder"]


@dataclass(frozen=True)
class TissueCard:
    """A segmentation network and how it wants to see a slide.

    Attributes:
        name: As in `--tissue NAME`.
        architecture: "deeplabv3_resnet50" (torchvision), or "unetplusplus" or "unet" with the
            `backbone` (segmentation-models-pytorch).
        classes: Number of output channels.
        tissue_classes: Channels that are tissue; `pen_classes` those that are pen.
        mpp: µm per pixel of its input.
        mean, std: Of the normalised input, RGB in [0, 1].
        jpeg_quality: The training pixels were compressed so; None: as they are.
        unwrap: Keys to descend through in the checkpoint.
        prefix: What the checkpoint's keys begin with.
        repo, file, revision, sha256: Where the weights lie on the hub.
        folder: Where they lie on this machine; wins over the hub.
        licence, commercial, gated, page, paper: Terms and source.
    """

    name: str
    architecture: str
    classes: int
    tissue_classes: tuple[int, ...]
    mpp: float
    backbone: str = ""
    pen_classes: tuple[int, ...] = ()
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    jpeg_quality: int | None = None
    unwrap: tuple[str, ...] = ()
    prefix: str = ""
    repo: str | None = None
    file: str = "model.safetensors"
    revision: str | None = None
    sha256: str | None = None
    folder: str | None = None
    licence: str = "unknown"
    commercial: bool | None = None
    gated: bool = False
    page: str | None = None
    paper: str = ""


_HUB = "MahmoodLab/hest-tissue-seg"
_GRANDQC = "CC-BY-NC-SA-4.0"

TISSUE_CARDS = {
    card.name: card
    for card in (
        TissueCard(
            name="hest",
            architecture="deeplabv3_resnet50",
            classes=2,
            tissue_classes=(1,),
            mpp=1.0,
            unwrap=("state_dict",),
            prefix="model.",
            repo=_HUB,
            file="deeplabv3_seg_v4.ckpt",
            licence="as its page says; read it before clinical or commercial use",
            commercial=None,
            page=f"https://huggingface.co/{_HUB}",
            paper="Jaume et al. 2024, HEST-1k, arXiv:2406.16192",
        ),
        TissueCard(
            name="grandqc",
            architecture="unetplusplus",
            backbone="timm-efficientnet-b0",
            classes=2,
            tissue_classes=(0,),
            mpp=10.0,
            jpeg_quality=80,
            repo=_HUB,
            file="Tissue_Detection_MPP10.pth",
            licence=_GRANDQC,
            commercial=False,
            page=f"https://huggingface.co/{_HUB}",
            paper="Weng et al. 2024, GrandQC, doi:10.1038/s41467-024-54769-y",
        ),
        # Channels: 1 normal tissue, 2 fold, 3 dark spot or foreign object, 4 pen, 5 edge or air
        # bubble, 6 out of focus, 7 background.
        TissueCard(
            name="grandqc-artefacts",
            architecture="unet",
            backbone="timm-efficientnet-b0",
            classes=8,
            tissue_classes=(1,),
            pen_classes=(4,),
            mpp=1.0,
            jpeg_quality=80,
            repo=_HUB,
            file="GrandQC_MPP1_state_dict.pth",
            licence=_GRANDQC,
            commercial=False,
            page=f"https://huggingface.co/{_HUB}",
            paper="Weng et al. 2024, GrandQC, doi:10.1038/s41467-024-54769-y",
        ),
    )
}


def card_of_folder(folder: Path) -> TissueCard | None:
    """The card in a checkpoint folder's `config.json`; None where the folder holds no network.

    Raises:
        ConfigError: The file is there and names an architecture, but does not fit a card.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}).", "Correct it.") from error
    if not isinstance(content, dict) or "architecture" not in content:
        return None
    known = {f.name for f in fields(TissueCard)}
    if unknown := sorted(set(content) - known):
        raise ConfigError(
            f"{path} has unknown keys {', '.join(unknown)}.", f"Known: {', '.join(sorted(known))}."
        )
    values: dict[str, Any] = {"name": folder.name, "folder": str(folder)}
    values |= {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    try:
        return TissueCard(**values)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}.", "Add what is missing.") from error
