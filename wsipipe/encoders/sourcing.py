"""Where a recipe's weights lie: the user's file, a local folder, the cache, the hub. No torch."""

from __future__ import annotations

from wsipipe import weights as store
from wsipipe.encoders.card import EncoderCard
from wsipipe.encoders.registry import Recipe

__all__ = ["is_cached", "locate", "source_of"]


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
