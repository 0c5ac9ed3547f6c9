"""PEFT's module paths: what can be imported from ``studio.peft.tuners.lora`` and its like, and where it really is.

The modules are made from the list of PEFT's names when they are imported. The same finder answers for ``peft.…`` after
``sys.modules["peft"] = studio.peft``: whatever is imported under that name is our module itself, and no second copy.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from studio.peft import available
from studio.peft.absent import ABSENT, absent, stand_in
from studio.peft.configs import methods as configs
from studio.peft.listed import LISTED
from studio.peft.model import kinds
from studio.peft.model.tuner import PEFT_TYPE_TO_TUNER_MAPPING

__all__ = ["PATHS", "install", "lookup"]

ROOT: Final = "studio.peft"

_HOMES: Final = (
    ".configs.methods", ".configs.config", ".model.layers", ".model.copies", ".model.tuner", ".model.status",
    ".terms.constants", ".terms.errors", ".terms.types", ".auto", ".buffers", ".condition", ".conversion", ".empty",
    ".corda", ".files.folder", ".files.renaming", ".get_model", ".hotswap", ".incremental_pca", ".intruders",
    ".matching", ".modules", ".optimizers", ".peft_model", ".precision", ".state_dicts", ".switching",
)  # fmt: skip
"""Our modules, relative to this package, that have things under the very names that PEFT has for them."""

_RENAMED: Final[dict[str, tuple[str, str]]] = {
    "BasePromptEncoder": (".configs.config", "PromptLearningConfig"),
    "CONFIG_NAME": ("studio.files.peft", "CONFIG_FILE"),
    "PeftConfigMixin": (".configs.config", "PeftConfig"),
    "SAFETENSORS_WEIGHTS_NAME": ("studio.files.peft", "TENSOR_FILE"),
    "_filter_state_dict_by_key_prefixes": (".matching", "keys_under"),
    "_find_minimal_target_modules": (".matching", "minimal_endings"),
    "_get_module_names_tied_with_embedding": (".matching", "names_tied_with_embedding"),
    "_get_no_split_modules": (".matching", "no_split_modules"),
    "_get_tuner_state_dict_key_prefixes": (".matching", "prefixes_of_keys"),
    "_maybe_include_all_linear_layers": (".matching", "all_linear_named"),
}
"""PEFT's name -> our module, and what the thing is called there."""

_LORA_KINDS: Final = ("Conv1d", "Conv2d", "Conv3d", "Embedding", "Linear")
_BEYOND: Final = {
    "import_utils": "is_transformers_ge_v5 is_transformers_ge_v5_1_0 is_transformers_ge_v5_4_0 "
    "is_transformers_ge_v5_6_0 is_transformers_ge_v5_13_0 is_transformers_ge_v5_17_0 is_transformers_le_4_53",
    "tuners.lokr.layer": "factorization",
    "tuners.tuners_utils": "BaseTuner BaseTunerLayer",
    "utils": "_get_submodules",
    "utils.other": "_get_submodules fsdp_auto_wrap_policy",
}
"""Further names that libraries import, by path."""


def _found(path: str, name: str) -> Any:
    """What a name of PEFT's is here, or None."""
    if name in _LORA_KINDS:
        return getattr(kinds, name) if path.startswith("tuners.lora") else None
    if name == "factorization":
        return importlib.import_module("studio.adapters.methods.lokr").peft_split
    home, ours = _RENAMED.get(name, ("", name))
    known: Mapping[str, Any] = {**kinds.LAYERS, **{one.__name__: one for one in PEFT_TYPE_TO_TUNER_MAPPING.values()}}
    if not home and name in known:
        return known[name]
    for place in (home,) if home else _HOMES:
        module = importlib.import_module(place, ROOT)
        if ours in module.__all__:
            return getattr(module, ours)
    return getattr(configs, name) if name in configs.names() else None


def lookup(path: str, name: str) -> Any:
    """Returns what is imported under one of PEFT's names: ours, or a stand-in that says on use that it is absent.

    Args:
        path: the module's path below ``peft``; "peft" is the package. name: a name that PEFT has there.
    """
    here = None if name.startswith("is_") else _found(path, name)
    if here is not None:
        return here
    return absent(name) if name in ABSENT else stand_in(path, name)


PATHS: Final = frozenset(LISTED) - {"peft"}
"""PEFT's module paths below ``peft``."""

_OURS: Final = ("auto", "optimizers", "peft_model")
"""Paths that are modules of ours already."""

_ALIASES: Final = {"config": "configs.config"}
"""PEFT's path -> the module of ours that is found there."""


def _names(path: str) -> dict[str, Any]:
    """What can be imported from one of PEFT's paths."""
    names = [*LISTED[path], *_BEYOND.get(path, "").split()]
    if path == "import_utils":
        return {name: getattr(available, name) for name in names}
    return {name: lookup(path, name) for name in names}


def _module_below(path: str, name: str) -> ModuleType:
    """A module below one of PEFT's paths, which importing PEFT imports too (``peft.tuners.lora``)."""
    if f"{path}.{name}" not in PATHS:
        raise AttributeError(f"module '{ROOT}.{path}' has no attribute {name!r}")
    return importlib.import_module(f"{ROOT}.{path}.{name}")


class _Finder(MetaPathFinder, Loader):
    """Finds the modules of the table, and every module of this package under another name of the package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        above, _, last = fullname.rpartition(".")
        parent = getattr(sys.modules.get(above), "__name__", "")
        if parent != ROOT and not parent.startswith(ROOT + "."):
            return None
        name = f"{parent}.{_ALIASES.get(last, last) if parent == ROOT else last}"
        below = name.removeprefix(ROOT + ".")
        if name != fullname:
            known = importlib.util.find_spec(name) is not None
            return ModuleSpec(fullname, self, loader_state=name) if known else None
        if below in PATHS and below not in _OURS:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        if spec.loader_state is None:
            return ModuleType(spec.name)
        module = importlib.import_module(spec.loader_state)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        if spec.loader_state is not None:  # ours under another name: it stays what it was
            module.__spec__ = spec.loader_state
            return
        path = spec.name.removeprefix(ROOT + ".")
        found = _names(path)
        module.__dict__.update(found, __doc__=f"``peft.{path}``.", __all__=sorted(found))
        module.__dict__["__getattr__"] = functools.partial(_module_below, path)


def install() -> None:
    """Makes PEFT's module paths importable below this package, and completes those that are modules of ours."""
    if not any(type(one).__module__ == __name__ for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for path in (*_OURS, *_ALIASES):
        module = importlib.import_module(f"{ROOT}.{_ALIASES.get(path, path)}")
        for name in LISTED[path]:
            vars(module).setdefault(name, lookup(path, name))
