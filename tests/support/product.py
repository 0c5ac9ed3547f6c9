"""The modules of the product, as files and as syntax trees."""

from __future__ import annotations

import ast
import os
from pathlib import Path

__all__ = ["LINKED", "ROOT", "SOURCES", "TREES", "listed"]

ROOT = Path(__file__).resolve().parent.parent.parent
LINKED = ("trainers", "pipelines", "datasets")
"""The folders that stand at the root and are imported as ``studio.trainers`` and so on."""


def _sources() -> dict[str, Path]:
    found = {}
    for folder, package in [("studio", "studio"), *((name, f"studio.{name}") for name in LINKED)]:
        for place, folders, names in os.walk(ROOT / folder):  # os.walk does not follow the links
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for file in (Path(place, name) for name in sorted(names) if name.endswith(".py")):
                parts = file.relative_to(ROOT / folder).with_suffix("").parts
                found[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return found


SOURCES = _sources()
"""Import name -> file, of every module."""
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in SOURCES.items()}
"""Import name -> syntax tree."""


def listed(tree: ast.Module) -> set[str]:
    """Returns the names in a module's ``__all__``."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return {item.value for item in getattr(node.value, "elts", []) if isinstance(item, ast.Constant)}
    return set()
