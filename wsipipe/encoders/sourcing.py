"""Where a recipe's weights lie (the user's file, a local folder, the cache, the hub), and what they
are. No torch."""

from __future__ import annotations

from typing import Any

from wsipipe import weights as store
from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.registry import Recipe, find

__all__ = ["identify", "is_cached", "locate", "source_of"]


def source_of(card: EncoderCard) -> store.Source:
    """Where the weights of a card are published, in the terms of `wsipipe.weights`."""
    return store.Source(
        name=card.name,
        repo=card.hub,
        revision=card.revision,
        files=card.file,
        url=card.url,
        sha256=card.sha256,
        page=card.terms_page,
        licence=card.licence,
        gated=card.gated,
        public=card.public,
    )


def locate(recipe: Recipe, weights: str | None) -> store.Located:
    """Find the weights of a recipe; downloads them if they are on the hub only.

    Raises:
        GatedEncoderError, WeightsError: They cannot be had; the message says how to.
    """
    if weights is not None:
        return store.local_file(weights, recipe.card.name)
    if recipe.folder is not None:
        return store.in_folder(recipe.folder, recipe.card.file, recipe.card.name)
    return store.fetch(source_of(recipe.card))


def is_cached(recipe: Recipe) -> bool:
    """Whether the encoder runs without fetching anything."""
    if not recipe.loads or recipe.folder is not None:
        return True
    return store.cached(source_of(recipe.card)) is not None


def identify(name: str, *, weights: str | None = None) -> dict[str, Any]:
    """`Encoder.identity()`, without torch and without a network where there is a file to hash.

    A run over finished slides needs only this. Weights are downloaded if they are not here.

    Raises:
        UnknownEncoderError, GatedEncoderError, WeightsError: As `create_encoder`.
    """
    recipe = find(name)
    if weights is None and not recipe.loads:
        if recipe.origin == "catalogue" and recipe.card.sha256 is not None:
            return recipe.card.identity(recipe.card.sha256, recipe.card.revision, recipe.definition)
        from wsipipe.encoders.create import create_encoder

        return create_encoder(name, precision="fp32").identity()
    located = locate(recipe, weights)
    return recipe.card.identity(located.sha256, located.revision, recipe.definition)
