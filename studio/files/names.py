"""The layers of a model under the names that files use: dotted, flattened, with and without their component."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias, cast

from torch import nn

from studio.adapters import Site
from studio.adapters.hosting.assembly import site_at
from studio.adapters.sites.kinds import is_site
from studio.adapters.sites.parameter import bare_parameters
from studio.adapters.sites.read import module_at
from studio.errors import DoesNotFit, nearest
from studio.families import components, family_of, named_parts
from studio.families.language.runtimes import LlamaCppNames, MlxNames
from studio.families.native import Native
from studio.files.components import ANY_FLAT, NATIVE, component_words, flat_prefix, meant_by
from studio.files.renames import other_names

__all__ = ["Names"]


_ENCODERS, _LEVEL = "text_encoders.", "transformer."
Tables: TypeAlias = Mapping[str, Mapping[str, str]]
"""Component -> name -> path."""


class Names:
    """Finds and spells the layers of one model.

    Args:
        model: any module, or a diffusers pipeline.

    Attributes:
        family: the model's family, or None.
        modules: component -> module, ``{"": model}`` for a model by itself.
        labels: component -> its name in files; a UNet by itself is labelled "unet", an unknown model "".
        paths: path of every module and bare parameter -> (component, path inside it), without what adapters brought.
        owners: path of a bare parameter -> the module that keeps it.
        chosen: paths of the adapter that is written, where its spelling depends on what else it is on.
        also: further names that the file at hand has for paths.
        inside: the component that the file at hand is about, where it says so beside its names; else "".
        architecture: what the file at hand calls the architecture of its model, where it does; else "".
        untold: the class of a model of diffusers or transformers whose names in kohya's files are not known; else "".
    """

    def __init__(self, model: Any) -> None:
        self.family = family_of(model)
        self.modules: dict[str, nn.Module] = components(model)
        self.labels = {name: name or self._label(module) for name, module in self.modules.items()}
        self.paths: dict[str, tuple[str, str]] = {}
        for component, module in self.modules.items():
            for name, _ in named_parts(module):
                if ".adapters." not in f".{name}.":
                    path = f"{component}.{name}" if component and name else component or name
                    self.paths[path] = (component, name)
        self.owners: dict[str, nn.Module] = {}
        for component, module in self.modules.items():
            for name, owner, _ in bare_parameters(module):
                path = f"{component}.{name}" if component else name
                if path not in self.paths:
                    self.paths[path], self.owners[path] = (component, name), owner
        self.chosen: frozenset[str] = frozenset()
        self.also: dict[str, str] = {}
        self.inside = ""
        self.architecture = ""
        self._asked = 0
        self.untold = "" if self.family is not None else _library_class((model, *self.modules.values()))
        self._levels = {} if self.family is None else self.family.levels

    def _label(self, module: nn.Module) -> str:
        if self.family is None:
            return ""
        encoder = "Text" in type(module).__name__
        return self.family.readers[0] if encoder and self.family.readers else self.family.denoiser

    def site(self, path: str, kinds: Collection[str] = ()) -> Site:
        """Returns the site at ``path``, an ordinary layer or of one of the further ``kinds``.

        Raises:
            UnsupportedLayer: it cannot be adapted.
        """
        component, name = self.paths[path]
        return site_at(self.modules[component], name, kinds)

    def module(self, path: str) -> nn.Module:
        """Returns the module at ``path``, or the one that keeps the parameter at ``path``."""
        if path in self.owners:
            return self.owners[path]
        component, name = self.paths[path]
        return cast(nn.Module, module_at(self.modules[component], name))

    def relative(self, path: str) -> tuple[str, str]:
        """Returns the label of a path's component, and the path inside it."""
        component, name = self.paths[path]
        return self.labels[component], name

    # -- spelling ----------------------------------------------------------------------------------------------------

    def dotted(self, path: str) -> str:
        """Spells a path as diffusers files do: ``text_encoder.text_model.encoder.layers.0.mlp.fc1``."""
        label, name = self.relative(path)
        return ".".join(part for part in (label, self._with_level(label, name)) if part)

    def flat(self, path: str) -> str:
        """Spells a path as kohya files do: ``lora_te_text_model_encoder_layers_0_mlp_fc1``; ``""`` where none can."""
        label, name = self.relative(path)
        if self.family is None:
            return f"{ANY_FLAT}_{name.replace('.', '_')}"
        if self.translates(path, "kohya"):
            name = self.native[path].name if path in self.native else ""
        prefix = self.family.flat.get(label)
        return f"{prefix}_{self._with_level(label, name).replace('.', '_')}" if prefix and name else ""

    def original(self, path: str) -> str:
        """Spells a path as those who trained the base do: ``diffusion_model.img_in``; ``""`` where none can."""
        label, name = self.relative(path)
        if self.family is None and (self.untold or len(self.modules) > 1):
            return ""
        if self.family is not None and label != self.family.denoiser:
            return f"{self._beside[label]}{_LEVEL}{self._with_level(label, name)}" if label in self._beside else ""
        if self.translates(path, "native"):
            name = self.native[path].name if path in self.native else ""
        return NATIVE[0] + name if name else ""

    def translates(self, path: str, format: str) -> bool:
        """Whether the files of a format have the layer by another name than diffusers'."""
        family = self.family
        if family is None or family.names is None or format not in family.names_in:
            return False
        return self.relative(path)[0] == family.denoiser

    def _with_level(self, label: str, name: str) -> str:
        level = self._levels.get(label, "")
        return name if name.startswith(level) else level + name

    @functools.cached_property
    def native(self) -> dict[str, Native]:
        """Path -> the layer that it is natively, wholly or in part, with whole paths."""
        found: dict[str, Native] = {}
        for component, label in self.labels.items():
            if self.family is None or self.family.names is None or label != self.family.denoiser:
                continue
            lead = f"{component}." if component else ""
            for one in self.family.names(self._by_name[component]):
                whole = Native(one.name, tuple(lead + path for path in one.paths), one.swapped)
                if all(path in self.paths for path in whole.paths):
                    found |= dict.fromkeys(whole.paths, whole)
        return found

    @functools.cached_property
    def llama_cpp(self) -> LlamaCppNames:
        """llama.cpp's names of its weights.

        Raises:
            DoesNotFit: they are not known. MissingPackage: the package with them is not installed.
        """
        return LlamaCppNames(self._language_model("llama.cpp"), self.paths)

    @functools.cached_property
    def mlx(self) -> MlxNames:
        """MLX's names of its layers.

        Raises:
            DoesNotFit: they are not known.
        """
        return MlxNames(self._language_model("MLX"), self.paths)

    def _language_model(self, program: str) -> nn.Module:
        if "" not in self.modules or self.family is not None:
            what = "a pipeline" if self.family is None else self.family.title
            raise DoesNotFit(f"{program} has language models, and this is {what}")
        return self.modules[""]

    @functools.cached_property
    def _natives(self) -> dict[str, Native]:
        """Native name, dotted and flattened -> the layer."""
        return {spelled: one for one in self.native.values() for spelled in (one.name, one.name.replace(".", "_"))}

    @functools.cached_property
    def _beside(self) -> dict[str, str]:
        """Text encoder -> what its names begin with where they stand beside native names."""
        single = None if self.family is None else self.family.single
        parts = {} if single is None else single.parts
        found = ((one, head) for one, heads in parts.items() for head in heads if head.startswith(_ENCODERS))
        return {component: head for component, head in found if component in self.labels.values()}

    # -- finding -----------------------------------------------------------------------------------------------------

    def find_dotted(self, text: str) -> str | None:
        """Returns the path that a dotted name means, with or without its component in front, or None."""
        found = self._find_dotted(text, self._by_name)
        return self._find_dotted(text, self._by_other_name) if found is None else found

    def _find_dotted(self, text: str, tables: Tables) -> str | None:
        head, _, rest = text.partition(".")
        for component, label in self.labels.items():
            if label and head == label:
                found = self._look(tables[component], label, rest)
                if found is not None:
                    return found
        known = head in component_words()
        if known and head not in self.labels.values() and any(self.labels.values()):
            return None  # of a component that this model does not have
        native = next((text.removeprefix(one) for one in NATIVE if text.startswith(one)), None)
        if native is not None:
            return self._within(self.family.denoiser if self.family else "", native, tables)
        beside = next((one for one in self._beside if text.startswith(self._beside[one])), None)
        if beside is not None:
            return self._within(beside, text.removeprefix(self._beside[beside]).removeprefix(_LEVEL), tables)
        found = self._anywhere(text, tables)
        return self._anywhere(rest, tables) if found is None and known else found

    def find_native(self, text: str) -> Native | None:
        """Returns the layer that a name means to those who trained the base, flattened or dotted, or None."""
        if not self.native or self.family is None:
            return None
        prefix = flat_prefix(text)
        if prefix and self.family.denoiser not in (meant_by(prefix, self.family) or (self.family.denoiser,)):
            return None
        heads = (f"{prefix}_",) if prefix else ("base_model.model.", *reversed(NATIVE), f"{self.family.denoiser}.")
        name = next((text.removeprefix(head) for head in heads if text.startswith(head)), text)
        whole = self._natives.get(name.removesuffix("_qkv"))
        if name.endswith("_qkv") and name not in self._natives and whole is not None and len(whole.paths) > 3:
            return Native(name, whole.paths[:3])  # queries, keys and values alone
        return self._natives.get(name)

    def absent(self, text: str) -> str:
        """Returns the component that a name in a file begins with and this model does not have, or ``""``."""
        present = set(self.labels.values()) - {""}
        head, prefix = text.partition(".")[0], flat_prefix(text)
        meant = (head,) if head in component_words() else meant_by(prefix, self.family) if prefix else ()
        return meant[0] if present and meant and not present & set(meant) else ""

    def find_flat(self, text: str) -> str | None:
        """Returns the path that a flattened name means, or None."""
        prefix = flat_prefix(text)
        if not prefix:
            return None
        labels, rest = meant_by(prefix, self.family), text[len(prefix) + 1 :]
        meant = {one: own for one, own in self.labels.items() if not labels or not own or own in labels}
        found = self._only(self._look(self._by_flat[one], own, rest, "_") for one, own in meant.items())
        if found is None:
            found = self._only(self._look(self._by_other_flat[one], own, rest, "_") for one, own in meant.items())
        return found

    def _within(self, label: str, text: str, tables: Tables) -> str | None:
        return self._only(self._look(tables[one], label, text) for one, own in self.labels.items() if own == label)

    def _anywhere(self, text: str, tables: Tables) -> str | None:
        return self._only(self._look(tables[one], own, text) for one, own in self.labels.items())

    @staticmethod
    def _only(found: Iterable[str | None]) -> str | None:
        """The path that all of them are, where they are one."""
        paths = set(found) - {None}
        return paths.pop() if len(paths) == 1 else None

    def _look(self, table: Mapping[str, str], label: str, text: str, dot: str = ".") -> str | None:
        found = table.get(text)
        if found is not None:
            return found
        level = self._levels.get(label, "").replace(".", dot)
        if not level:
            return None
        return table.get(text.removeprefix(level)) if text.startswith(level) else table.get(level + text)

    @functools.cached_property
    def _by_name(self) -> dict[str, dict[str, str]]:
        tables: dict[str, dict[str, str]] = {component: {} for component in self.modules}
        for path, (component, name) in self.paths.items():
            tables[component][name] = path
        return tables

    @functools.cached_property
    def _by_flat(self) -> dict[str, dict[str, str]]:
        return {one: _flattened(table) for one, table in self._by_name.items()}

    @functools.cached_property
    def _by_other_name(self) -> dict[str, dict[str, str]]:
        """The same for names of other versions of the libraries."""
        return {
            one: {other: table[name] for other, name in other_names(type(self.modules[one]).__name__, table).items()}
            for one, table in self._by_name.items()
        }

    @functools.cached_property
    def _by_other_flat(self) -> dict[str, dict[str, str]]:
        return {one: _flattened(table) for one, table in self._by_other_name.items()}

    # -- hints -------------------------------------------------------------------------------------------------------

    def nearest(self, text: str, spell: Callable[[Names, str], str]) -> str:
        """Returns the spelling of the layer whose name looks most like ``text``; ``""`` after the first few questions.

        Args:
            text: a module's name in a file.
            spell: how the file's format spells a path.
        """
        self._asked += 1
        if self._asked > 10:  # a file for another model has hundreds of them
            return ""
        layers = [path for path in self.paths if is_site(self.module(path))]
        words = set(text.replace(".", "_").split("_"))
        spelled = {spell(self, path) for path in layers}
        shared = sorted(spelled, key=lambda name: (-len(words & set(name.replace(".", "_").split("_"))), name))
        return next(iter(nearest(text, shared[:40], 1)), "")


def _flattened(table: Mapping[str, str]) -> dict[str, str]:
    return {name.replace(".", "_"): path for name, path in table.items()}


def _library_class(models: Iterable[Any]) -> str:
    """The first class of diffusers or transformers among ``models``, ``""`` where all are of the user's own."""
    kinds = (type(model) for model in models)
    library = ("diffusers.", "transformers.")
    return next((kind.__name__ for kind in kinds if any(c.__module__.startswith(library) for c in kind.__mro__)), "")
