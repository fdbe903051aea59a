"""Ranking, metrics and reports."""
