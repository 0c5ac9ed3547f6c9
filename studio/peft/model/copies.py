"""modules_to_save: whole modules of the base of which an adapter has, trains and saves a copy of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from studio.adapters.sites.read import module_at
from studio.peft.configs.select import paths_to_save
from studio.peft.model.dressing import generated_class
from studio.peft.model.samples import rows_of
from studio.peft.model.state import KEY, State, as_names
from studio.peft.terms.errors import Wrong

__all__ = ["AuxiliaryTrainingWrapper", "ModulesToSaveWrapper", "drop_copy", "give_copies", "plain_view"]


PATH: Final = "_studio_path"
"""Where a module with copies keeps its path."""

_CONTAINERS: Final = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)


class Container(Wrong, TypeError):
    """A module that is never called and so cannot be stood in for; a ``TypeError`` too, which is what PEFT raises."""


class AuxiliaryTrainingWrapper:
    """What ``isinstance`` asks of a module that an adapter has a copy of."""


class ModulesToSaveWrapper(AuxiliaryTrainingWrapper):
    """A module of the base with copies: the same object, which runs the copy of the active adapter.

    Attributes:
        modules_to_save: adapter name -> copy.
    """

    modules_to_save: nn.ModuleDict
    adapter_layer_names = ("modules_to_save",)
    other_param_names = ()

    @property
    def _state(self) -> State:
        return cast(State, self.__dict__[KEY])

    @property
    def _path(self) -> str:
        return cast(str, self.__dict__[PATH])

    @property
    def original_module(self) -> nn.Module:
        """The base's own module: its class, its parameters."""
        return plain_view(cast(nn.Module, self))

    def __getattr__(self, name: str) -> Any:
        # what the model reads of the module without calling it (``self.head.weight``) is the copy's that acts
        copies = self.__dict__.get("_modules", {}).get("modules_to_save")
        if copies is not None and name not in ("modules_to_save", KEY, PATH):
            acting = self._acting()
            if acting is not None:
                return getattr(acting, name)
        return super().__getattr__(name)  # type: ignore[misc]

    def _acting(self) -> nn.Module | None:
        """The copy that acts, or None while the base's own module does."""
        chosen = [] if self.disable_adapters else self.active_adapters
        return self.modules_to_save[chosen[0]] if chosen else None

    @property
    def active_adapters(self) -> list[str]:
        """The adapters of which a copy is here and that are active."""
        chosen = self._state.chosen.get(self._path, self._state.active)
        return [name for name in chosen if name in self.modules_to_save]

    active_adapter = active_adapters

    @property
    def _adapters(self) -> set[str]:
        return set(self.modules_to_save)

    @property
    def disable_adapters(self) -> bool:
        """Whether the copies are switched off."""
        return self._path in self._state.copies_off

    def enable_adapters(self, enabled: bool) -> None:
        """Switches the copies of this module on or off."""
        (self._state.copies_off.discard if enabled else self._state.copies_off.add)(self._path)

    def set_adapter(self, adapter_names: str | Sequence[str], inference_mode: bool = False) -> None:
        """Sets whose copy acts here, until adapters are set for the whole model; it is trained and no other is."""
        self._state.chosen[self._path] = as_names(adapter_names)
        for name, module in self.modules_to_save.items():
            for parameter in filter(torch.is_floating_point, module.parameters()):
                parameter.requires_grad_(name in as_names(adapter_names) and not inference_mode)

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        """Returns the names of the module's tensors in a file, and here."""
        held = self.modules_to_save[adapter_name].state_dict()
        return {key: f"modules_to_save.{adapter_name}.{key}" for key in held}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the copy of the adapter that acts, or each copy on the rows of its samples."""
        state = self._state
        if state.samples is not None:
            return self._forward_by_sample(rows_of(state, args, kwargs), *args, **kwargs)
        acting = self._acting()
        return (self.original_module if acting is None else acting)(*args, **kwargs)

    def _forward_by_sample(self, names: list[str], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        result: Tensor | None = None
        off = self.disable_adapters
        for name in dict.fromkeys(names):
            rows = torch.tensor([row for row, one in enumerate(names) if one == name], device=x.device)
            module = self.original_module if off or name not in self.modules_to_save else self.modules_to_save[name]
            part = module(x.index_select(0, rows), *args, **kwargs)
            if not isinstance(part, Tensor):
                raise Wrong(
                    f"adapter_names cannot be mixed in a batch with a whole {type(self).__name__}, which returns more "
                    "than one tensor"
                )
            if result is None:
                result = part.new_zeros((len(names), *part.shape[1:]))
            result = result.index_copy(0, rows, part)
        return result


def plain_view(module: nn.Module) -> nn.Module:
    """Returns the module as the base has it: an object of its own class that shares all that it holds."""
    plain = next((one for one in type(module).__mro__ if "hosts" not in vars(one) and "holds" not in vars(one)
                  and issubclass(one, nn.Module)), nn.Module)  # fmt: skip
    view = plain.__new__(plain)
    object.__setattr__(view, "__dict__", module.__dict__)
    return view


def give_copies(state: State, name: str, config: Any) -> None:
    """Gives an adapter copies of the modules that its config has trained whole.

    Args:
        state: what is on the model. name: the adapter. config: PEFT's config.

    Raises:
        NoMatchingPeftModuleError: an ending that names nothing.
        Wrong: a module cannot be copied, because it or what is in it carries an adapter, or its forward is not its own,
            or because it is a container.
    """
    for path in paths_to_save(state.model, config):
        state.extras[name].modules[path] = _give_copy(state, path, name)


def _give_copy(state: State, path: str, name: str) -> nn.Module:
    module = cast(nn.Module, module_at(state.model, path))
    if isinstance(module, _CONTAINERS):
        raise Container(
            f"modules_to_save cannot be applied to modules of type {type(module).__name__} ({path!r}), which are never "
            "called: name the modules in it"
        )
    inside = [where for where, one in module.named_modules() if "hosts" in vars(type(one))]
    if inside:
        raise Wrong(f"modules_to_save {path!r} carries an adapter at {inside[0] or path}; leave it out of the targets")
    if not isinstance(module, ModulesToSaveWrapper):
        if "forward" in module.__dict__:
            raise Wrong(f"modules_to_save {path!r}: something else has replaced its forward; take that off first")
        made = copy.deepcopy(module)
        module.__class__ = generated_class(type(module), "", (ModulesToSaveWrapper,))
        module._modules["modules_to_save"] = nn.ModuleDict({name: made})
        module.__dict__[KEY], module.__dict__[PATH] = state, path
        return made
    others, _ = module._modules.pop("modules_to_save"), module.__dict__.pop(KEY)  # which are not to be copied
    try:
        made = copy.deepcopy(plain_view(module))
    finally:
        module._modules["modules_to_save"], module.__dict__[KEY] = others, state
    cast(nn.ModuleDict, others)[name] = made
    return made


def drop_copy(state: State, path: str, name: str) -> None:
    """Takes a copy out again; after the last one the module is what it was.

    Args:
        state: what is on the model. path: the module. name: the adapter.
    """
    module = cast(nn.Module, module_at(state.model, path))
    copies = cast(nn.ModuleDict, module._modules["modules_to_save"])
    del copies[name]
    if not len(copies):
        del module._modules["modules_to_save"], module.__dict__[KEY], module.__dict__[PATH]
        state.copies_off.discard(path)
        state.chosen.pop(path, None)
        module.__class__ = cast("type[nn.Module]", vars(type(module))["holds"])
