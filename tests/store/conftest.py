"""Fixtures of the store's tests; the kit has a name of its own so that tests can import it."""

from store_kit import make_file, small_disk

__all__ = ["make_file", "small_disk"]
