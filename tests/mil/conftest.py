"""Fixtures of the MIL tests; the kit has a name of its own so that tests can import it."""

from mil_kit import cohort, mil_data

__all__ = ["cohort", "mil_data"]
