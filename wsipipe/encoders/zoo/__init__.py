"""The catalogue: one file a family, each with its cards and a `build`. No file imports torch at
its top.

To add an encoder: write `zoo/<family>.py` with `CARDS` (or `CARD`) and `build(card)`, and add its
name here. Tests run over this list.
"""

FAMILIES: tuple[str, ...] = (
    "texture",
    "phikon",
    "uni",
    "conch",
    "paige",
    "bioptimus",
    "gigapath",
    "kaiko",
    "hibou",
    "openmidnight",
    "genbio",
    "hkust",
    "pathorchestra",
    "ctranspath",
    "lunit",
    "musk",
    "clip",
    "keep",
    "beph",
    "pathoduet",
    "remedis",
    "tissue_concepts",
    "imagenet",
    "dino",
    "private",
)
