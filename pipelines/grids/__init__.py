"""Grids of pictures that explain: what changes along an axis, and the sheet of all that it makes."""
