"""modules_to_save: whole modules of the base of which an adapter has, trains and saves a copy of its own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from torch import Tensor, nn

from studio.peft.kinds import Wrong

if TYPE_CHECKING:
    from studio.peft.injection import Injection

__all__ = ["AuxiliaryTrainingWrapper", "ModulesToSaveWrapper", "drop_copy", "give_copy"]

_KEY: Final = "_studio_peft_owner"


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
    def _owner(self) -> Injection:
        return cast("Injection", self.__dict__[_KEY])

    @property
    def original_module(self) -> nn.Module:
        """The base's own module: its class, its parameters."""
        return plain_view(cast(nn.Module, self))

    @property
    def active_adapters(self) -> list[str]:
        """The adapters of which a copy is here and that are active."""
        return [name for name in self._owner.active if name in self.modules_to_save]

    active_adapter = active_adapters

    @property
    def _adapters(self) -> set[str]:
        return set(self.modules_to_save)

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        """Returns the names of the module's tensors in a file, and here."""
        held = self.modules_to_save[adapter_name].state_dict()
        return {key: f"modules_to_save.{adapter_name}.{key}" for key in held}

    @property
    def disable_adapters(self) -> bool:
        """Whether adapters are switched off."""
        return self._owner.disabled

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        owner = self._owner
        if owner.samples is not None:
            return self._run_by_sample(owner.samples_for(args, kwargs), *args, **kwargs)
        if owner.disabled:
            return self.original_module(*args, **kwargs)
        chosen = self.active_adapters
        return (self.modules_to_save[chosen[0]] if chosen else self.original_module)(*args, **kwargs)

    def _run_by_sample(self, names: list[str], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Runs each copy on the rows of its samples."""
        result: Tensor | None = None
        for name in dict.fromkeys(names):
            rows = torch.tensor([row for row, one in enumerate(names) if one == name], device=x.device)
            module = self.modules_to_save[name] if name in self.modules_to_save else self.original_module  # noqa: SIM401
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
    kind = next((one for one in type(module).__mro__ if "hosts" not in vars(one) and "holds" not in vars(one)
                 and issubclass(one, nn.Module)), nn.Module)  # fmt: skip
    view = kind.__new__(kind)
    object.__setattr__(view, "__dict__", module.__dict__)
    return view


_CLASSES: Final[dict[type[nn.Module], type[nn.Module]]] = {}


def _class_for(base: type[nn.Module]) -> type[nn.Module]:
    if base not in _CLASSES:

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            return self._run(*args, **kwargs)

        def reduce_ex(self: nn.Module, protocol: int) -> Any:
            reduced: Any = base.__reduce_ex__(self, protocol)
            return (_rebuild, (base,), *reduced[2:])

        body = {
            "forward": forward,
            "__reduce_ex__": reduce_ex,
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "holds": base,
        }
        made = type(base.__name__, (ModulesToSaveWrapper, base), body)
        _CLASSES[base] = cast("type[nn.Module]", made)
    return _CLASSES[base]


def _rebuild(base: type[nn.Module]) -> nn.Module:
    kind = _class_for(base)
    return kind.__new__(kind)


def give_copy(owner: Injection, path: str, name: str) -> nn.Module:
    """Gives the module at ``path`` a copy for the adapter ``name`` and returns the copy.

    Raises:
        Wrong: the module cannot be copied, because it or what is in it carries an adapter.
    """
    module = owner.model.get_submodule(path)
    inside = [where for where, one in module.named_modules() if "hosts" in vars(type(one))]
    if inside:
        raise Wrong(f"modules_to_save {path!r} carries an adapter at {inside[0] or path}; leave it out of the targets")
    if isinstance(module, ModulesToSaveWrapper):
        source = plain_view(module)
        held = module._modules.pop("modules_to_save")
        made = copy.deepcopy(source)
        module._modules["modules_to_save"] = held
        made.__dict__.pop(_KEY, None)
    else:
        if "forward" in module.__dict__:
            raise Wrong(f"modules_to_save {path!r}: something else has replaced its forward; take that off first")
        made = copy.deepcopy(module)
        module._modules["modules_to_save"] = nn.ModuleDict()
        module.__dict__[_KEY] = owner
        module.__class__ = _class_for(type(module))
    cast(nn.ModuleDict, module._modules["modules_to_save"])[name] = made
    return made


def drop_copy(owner: Injection, path: str, name: str) -> None:
    """Takes the copy out again; after the last one the module is what it was."""
    module = owner.model.get_submodule(path)
    copies = cast(nn.ModuleDict, module._modules["modules_to_save"])
    del copies[name]
    if not len(copies):
        del module._modules["modules_to_save"], module.__dict__[_KEY]
        module.__class__ = cast("type[nn.Module]", vars(type(module))["holds"])
