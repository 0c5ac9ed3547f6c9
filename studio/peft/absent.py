"""PEFT's configs of methods that the studio does not have."""

from __future__ import annotations

from typing import Any

from studio.adapters import METHODS
from studio.peft.configs.config import PeftConfig
from studio.peft.kinds import Wrong

__all__ = ["absent"]


def absent(name: str, method: str) -> type[PeftConfig]:
    """Makes a class of that name that says, when it is called, that the studio does not have the method."""

    def refuse(self: PeftConfig, *args: Any, **kwargs: Any) -> None:
        raise Wrong(f"{name}: the studio does not have {method}; it has {', '.join(METHODS)}")

    return type(name, (PeftConfig,), {"__init__": refuse, "__module__": "studio.peft", "__doc__": refuse.__doc__})
