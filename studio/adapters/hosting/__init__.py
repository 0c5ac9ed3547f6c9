"""Hosting: how a layer lets adapters act, how strongly, and whether it was called at all."""
