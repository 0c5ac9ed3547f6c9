"""A component of a model as targets see it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import Tensor, nn

from studio.adapters.contract.pattern import is_expression
from studio.adapters.sites.kinds import is_site
from studio.adapters.sites.parameter import BARE, bare_parameters
from studio.adapters.targets.unmatched import names
from studio.families import named_parts

__all__ = ["Component"]


@dataclass(frozen=True)
class Component:
    """A component, its layers and its bare parameters, looked at once.

    Attributes:
        name, module: the component. kinds: what the method covers.
    """

    name: str
    module: nn.Module
    kinds: Collection[str]

    @cached_property
    def parts(self) -> Mapping[str, nn.Module]:
        """Path -> module, of the base alone."""
        return {path: part for path, part in named_parts(self.module) if not _inside_adapter(path)}

    @cached_property
    def layers(self) -> Mapping[str, nn.Module]:
        """Path -> what a method looks at."""
        return {path: part for path, part in self.parts.items() if is_site(part, self.kinds)}

    @cached_property
    def bare(self) -> Mapping[str, str]:
        """Path of a bare parameter -> its kind."""
        return {
            path: BARE[1] if cast(Tensor, owner._parameters[own]).dim() == 3 else BARE[0]
            for path, owner, own in bare_parameters(self.module)
        }

    @property
    def foreign(self) -> Sequence[str]:
        """Paths of layers that another library has wrapped."""
        return [path for path, part in self.parts.items() if _of_peft(part)]

    def named(self, pattern: str) -> list[str]:
        """The paths that a pattern names: layers, and the bare parameters that it means.

        A whole path and an expression mean what they name; a suffix or a glob means layers where it names any.
        """
        found = [path for path in self.layers if names(pattern, self.name, path)]
        known = [path for path in self.covered if names(pattern, self.name, path)]
        exact = [path for path in known if pattern in (path, f"{self.name}.{path}")]
        return [*found, *(known if is_expression(pattern) or not (found or exact) else exact)]

    @property
    def covered(self) -> list[str]:
        """Paths of the bare parameters that the method covers."""
        return [path for path, kind in self.bare.items() if kind in self.kinds]

    def ordered(self, chosen: Iterable[str]) -> list[str]:
        """Paths in the order of the model; a MultiheadAttention brings its output projection with it."""
        wanted = set(chosen)
        whole = [path for path in wanted if isinstance(self.layers.get(path), nn.MultiheadAttention)]
        wanted |= {f"{path}.out_proj" if path else "out_proj" for path in whole}
        return [path for path in (*self.layers, *self.bare) if path in wanted]


def _inside_adapter(path: str) -> bool:
    return ".adapters." in f".{path}."


def _of_peft(module: nn.Module) -> bool:
    """Whether the package peft has put this in the place of a layer."""
    tuned = (cls for cls in type(module).__mro__ if cls.__name__ == "BaseTunerLayer")
    return any(cls.__module__.partition(".")[0] == "peft" for cls in tuned)
