"""Combining: one new adapter out of several."""
