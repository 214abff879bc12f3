"""`texture`: the embedded default encoder. No training, no weights, no network access.

Stains are separated (Ruifrok and Johnston 2001); the rest describes haematoxylin (H), eosin (E) and
what is left (R) at 2, 4 and 8 times the tile's pixel size:

    numbers  what
    12       mean, spread, skewness and peakedness of H, E, R
    21       seven quantiles of H, E, R
    64       joint histogram of H and E
    80       rotation-invariant uniform local binary patterns of H and E (Ojala et al. 2002)
    20       energies of oriented filters, eight directions at two scales, as numbers that do not
             change when the tile is turned
    120      covariance of stains and gradients at three scales (after Tuzel et al. 2006)

On the CPU tiles are described in groups of one fixed size, so that a tile's numbers are the same to
the bit whichever batch it comes in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsipipe.encoders.card import EncoderCard

if TYPE_CHECKING:
    from torch import nn

DIM = 12 + 21 + 64 + 80 + 20 + 120
LOADS = False

CARD = EncoderCard(
    name="texture",
    dim=DIM,
    tile_px=224,
    mpp=0.5,
    mean=None,
    std=None,
    any_size=True,
    pooling="statistics",
    precision="fp32",
    revision="1",
    # Of the filters of revision 1. Recorded, not computed where it runs: the last bit of a cosine
    # differs between machines that may share a folder, and resuming needs no torch.
    sha256="1238e0963ecaa10ad6c53593a46cb23828536ba438cf40eaf5734c7ba616087d",
    licence="Apache-2.0",
    commercial=True,
    params=0,
    paper="Ruifrok and Johnston 2001; Ojala et al. 2002; Tuzel et al. 2006",
    notes=("Training-free: a floor for comparisons and a default that works everywhere.",),
)


def build(card: EncoderCard) -> nn.Module:
    """The encoder; nothing is random and nothing is loaded."""
    from wsipipe.encoders.zoo.texture_net import Texture

    return Texture(card.dim)
