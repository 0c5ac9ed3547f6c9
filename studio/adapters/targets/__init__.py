"""Targets: which layers of a model a pattern or a preset names."""
