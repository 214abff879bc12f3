"""Figures and their intervals. Metrics take weights: a bootstrap is one matrix product."""
