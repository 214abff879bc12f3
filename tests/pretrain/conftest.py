"""Fixtures of the pretraining tests; the kit has a name of its own so that tests can import it."""

from pretrain_kit import few_tiles

__all__ = ["few_tiles"]
