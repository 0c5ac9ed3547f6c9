"""What all of PEFT's configs have: the fields, ``adapter_config.json``, and back."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Final

from studio.adapters.contract.foreign import Settings
from studio.adapters.contract.pattern import check_foreign
from studio.atomic import atomic_path
from studio.errors import BadFile, nearest
from studio.files.peft import CONFIG_FILE
from studio.files.peft_settings import expressions_in
from studio.files.source import read_fields
from studio.peft.terms.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from studio.peft.terms.errors import PeftWarning, Wrong, refusals
from studio.peft.terms.places import folder_of
from studio.peft.terms.types import VERSION, PeftType, TaskType

__all__ = ["PEFT_TYPE_TO_CONFIG_MAPPING", "PeftConfig", "PromptLearningConfig", "config_for", "get_peft_config"]

PEFT_TYPE_TO_CONFIG_MAPPING: Final[dict[PeftType, type[PeftConfig]]] = {}
"""PEFT's word for a method -> its config class; filled by :mod:`studio.peft.configs.methods`."""

__version__ = VERSION
"""What new configs say that they were made by; PEFT has it here."""

_NOT_SAVED: Final = ("runtime_config",)
_OFF: Final[tuple[Any, ...]] = (None, False, 0, 0.0, "", "none", [], {})


def _get_commit_hash(pkg_name: str) -> str | None:
    """Which commit a version in development is of; ours is a released one's."""
    return None


def _made_by() -> str:
    """What a new config says that it was made by, as PEFT writes it."""
    if "dev" not in __version__:
        return __version__
    try:
        return f"{__version__}@{_get_commit_hash('peft') or 'UNKNOWN'}"
    except Exception:  # whatever it is, it is no reason to have no config
        said = "A dev version of PEFT is used but there was an error while trying to determine the commit hash"
        warnings.warn(said, PeftWarning, stacklevel=5)
        return f"{__version__}@UNKNOWN"


class NoConfig(BadFile, TypeError, ValueError):
    """A file that is no config of an adapter; a ``TypeError`` too, which is what PEFT raises."""


@dataclass(kw_only=True)
class PeftConfig:
    """Fields of every config of PEFT's.

    Attributes:
        task_type: what the model is for. peft_type: PEFT's word for the method.
        inference_mode: whether the adapter is frozen.
        base_model_name_or_path: which base it belongs to. revision: which version of that base.
        auto_mapping: class and library of a base without a task type. peft_version: what wrote the file.

    Raises:
        Wrong: a task type that PEFT does not know, or another field with an impossible value.
    """

    word: ClassVar[str] = ""
    settings: ClassVar[Settings] = Settings(name="")

    task_type: TaskType | str | None = None
    peft_type: PeftType | str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    def __post_init__(self) -> None:
        known = [task.value for task in TaskType]
        if self.task_type is not None and self.task_type not in known:
            close = nearest(str(self.task_type), known, 1)[0]
            raise Wrong(
                f"Invalid task type: '{self.task_type}'. Must be one of the following task types: {', '.join(known)}. "
                f"Did you mean '{close}'?"
            )
        if self.word:
            self.peft_type = PeftType(self.word)
        if self.peft_version is None:
            self.peft_version = _made_by()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name, None)
            if value is not None and not isinstance(value, str):
                setattr(self, name, set(value))
        self._check_layers()
        with refusals():
            self.settings.check(self)

    def _check_layers(self) -> None:
        targets = getattr(self, "target_modules", None)
        layers, pattern = (getattr(self, name, None) for name in ("layers_to_transform", "layers_pattern"))
        for name, value in (("layers_to_transform", layers), ("layers_pattern", pattern)):
            if isinstance(targets, str) and targets != INCLUDE_LINEAR_LAYERS_SHORTHAND and value is not None:
                raise Wrong(f"`{name}` cannot be used when `target_modules` is a str.")
        if pattern and layers is None:
            raise Wrong("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")

    @property
    def is_prompt_learning(self) -> bool:
        """Whether the method adds virtual tokens."""
        return False

    @property
    def is_adaption_prompt(self) -> bool:
        """Whether the method is LLaMA-Adapter, which the studio does not have."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items() if name not in _NOT_SAVED}

    def save_pretrained(self, save_directory: str | Path, **fields: Any) -> None:
        """Writes ``adapter_config.json``: sorted, the same bytes each time.

        Args:
            save_directory: the folder. fields: fields of the file that replace the config's own.

        Raises:
            Wrong: a file stands where the folder should be.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise Wrong(f"{folder} is a file; name a folder")
        auto = fields.pop("auto_mapping_dict", None)
        content = {**self.to_dict(), **fields}
        if auto is not None:
            content["auto_mapping"] = auto
        with atomic_path(folder / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def from_json_file(cls, path_json_file: str | Path, **kwargs: Any) -> dict[str, Any]:
        """Returns the fields in a file.

        Raises:
            BadFile: it is no table in JSON.
        """
        fields = read_fields(Path(path_json_file))
        check_foreign(expressions_in(fields), f"{path_json_file} says")
        return {name: one for name, one in fields.items() if name not in _NOT_SAVED}

    @classmethod
    def from_peft_type(cls, **fields: Any) -> PeftConfig:
        """Makes the config that ``peft_type`` names.

        Raises:
            Wrong: a method that the studio does not have, or a field that it does not know.
        """
        word = fields.pop("peft_type", None) or cls.word
        made = config_for(word)
        known = {one.name for one in dataclasses.fields(made) if one.init}
        for name, value in list(fields.items()):
            if name not in known:
                if value not in _OFF:
                    close = ", ".join(nearest(name, known, 3))
                    raise Wrong(
                        f"the field {name}={value!r} of a {word} config is not known here and may change what the "
                        f"adapter computes; the nearest known fields are: {close}"
                    )
                del fields[name]
        return made(**fields)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> PeftConfig:
        """Reads ``adapter_config.json`` from a folder, or from the Hub for a name that is no local path.

        A field that is not known is left out with a warning, as PEFT does; a model that is loaded from that folder
        refuses it, because it may change what the adapter computes.

        Raises:
            BadFile: there is none. Wrong: a method that the studio does not have.
        """
        fields = cls._fields_at(pretrained_model_name_or_path, subfolder, kwargs)
        made = config_for(fields.get("peft_type") or cls.word)
        known = {one.name for one in dataclasses.fields(made) if one.init} | {"peft_type"}
        stray = sorted(name for name, value in fields.items() if name not in known and value not in _OFF)
        if stray:
            warnings.warn(
                f"Unexpected keyword arguments {stray} for class {made.__name__}, these are ignored. A model that is "
                "loaded from this folder refuses them.",
                stacklevel=2,
            )
        return cls.from_peft_type(**{name: value for name, value in fields.items() if name not in stray})

    @classmethod
    def strictly_from(cls, folder: str | Path, subfolder: str | None = None, **kwargs: Any) -> PeftConfig:
        """As :meth:`from_pretrained`, for a model that is loaded: every field must be known.

        Raises:
            BadFile: there is none. Wrong: a method or a field that the studio does not have.
        """
        return cls.from_peft_type(**cls._fields_at(folder, subfolder, kwargs))

    @classmethod
    def _fields_at(cls, folder_or_id: str | Path, subfolder: str | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The fields of a folder's config, with those that were given besides."""
        places = {name: kwargs.pop(name) for name in ("revision", "cache_dir", "token") if name in kwargs}
        folder = folder_of(folder_or_id, subfolder, (CONFIG_FILE,), **places)
        fields = cls.from_json_file(folder / CONFIG_FILE)
        if "peft_type" not in fields:
            raise NoConfig(
                f"The {cls.__name__} config that is trying to be loaded is missing required keys: {{'peft_type'}}. "
                f"({folder / CONFIG_FILE} is no config of an adapter)"
            )
        return {"peft_version": "", **fields, **kwargs}  # "": older than PEFT's note of it


@dataclass(kw_only=True)
class PromptLearningConfig(PeftConfig):
    """Fields of the methods that add virtual tokens.

    Attributes:
        num_virtual_tokens: how many tokens. The others are read from the model where they are None.
    """

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None

    @property
    def is_prompt_learning(self) -> bool:
        return True


def _plain(value: Any) -> Any:
    """A value as JSON has it; sets are sorted, so that two saves are alike."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(one) for one in value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def config_for(word: PeftType | str | None) -> type[PeftConfig]:
    """Returns the config class of a method by PEFT's word.

    Raises:
        Wrong: the studio does not have the method.
    """
    have = {known.value: found for known, found in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    text = word.value if isinstance(word, PeftType) else str(word)
    if text not in have:
        known = [one.value for one in PeftType]
        what = "is a method of PEFT's that the studio does not have" if text in known else "is no method of PEFT's"
        raise Wrong(f"peft_type={text!r} {what}; it has {', '.join(sorted(have))}")
    return have[text]


def get_peft_config(config_dict: dict[str, Any]) -> PeftConfig:
    """Makes a config from its fields, ``peft_type`` among them."""
    return PeftConfig.from_peft_type(**config_dict)
