"""What the presets find in every model type: ``python -m benchmarks.targets [TYPE ...] [--json FILE]``.

Every model type of transformers and every model class of diffusers that can be built from its default config is built
on the meta device, without weights. Per type a line tells what "attention" found, or what is missing from it. The
check does not ask the presets themselves: a class whose name says that it is an attention, and that holds projections,
has to have queries, keys, values and an output among what was found.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.adapters.targets.structure import Structure, ends_of, read_structure
from studio.adapters.targets.words import is_attention_name

SECONDS = 60


@dataclass(frozen=True)
class Found:
    """What was found in one model type.

    Attributes:
        name: the type. model: the class that was built, "" where none could be. reason: why not.
        attentions, feed_forwards: how many. missing: attention classes without all four roles, and which lack.
        wrong: projections that are a head or in no attention, by the names of their classes.
    """

    name: str
    model: str = ""
    reason: str = ""
    attentions: int = 0
    feed_forwards: int = 0
    missing: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every attention was found with all four roles, and nothing else was."""
        return not self.missing and not self.wrong

    def __str__(self) -> str:
        if not self.model:
            return f"{self.name}: not built ({self.reason})"
        if self.missing or self.wrong:
            return f"{self.name}: INCOMPLETE {'; '.join((*self.missing, *self.wrong))}"
        found = (
            f"{self.attentions} attentions, {self.feed_forwards} feed-forwards" if self.attentions else "no attention"
        )
        return f"{self.name}: {found} ({self.model})"


def transformers_types() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yields every model type of transformers and what builds it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for name in CONFIG_MAPPING:
        yield name, partial(_from_type, CONFIG_MAPPING[name])


def _from_type(config: Callable[[], Any]) -> nn.Module:
    return _from_config(config())


def _from_config(config: Any) -> nn.Module:
    """The model of a config with its usual head, else any model class that takes the config."""
    from transformers import PreTrainedModel
    from transformers.models.auto import modeling_auto as auto

    heads = (
        "CAUSAL_LM",
        "SEQ_TO_SEQ_CAUSAL_LM",
        "PRETRAINING",
        "IMAGE_TEXT_TO_TEXT",
        "MASKED_LM",
        "IMAGE_CLASSIFICATION",
    )
    tables = [getattr(auto, f"MODEL_FOR_{head}_MAPPING") for head in heads] + [auto.MODEL_MAPPING]
    classes = [table[type(config)] for table in tables if type(config) in table.keys()]  # noqa: SIM118  (a lazy table)
    flat = [cls[0] if isinstance(cls, tuple) else cls for cls in classes]
    if not flat:
        module = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
        own = [cls for cls in vars(module).values() if isinstance(cls, type) and issubclass(cls, PreTrainedModel)]
        flat = [
            cls
            for cls in own
            if getattr(cls, "config_class", None) is type(config) and not cls.__name__.endswith("PreTrainedModel")
        ]
    errors = []
    for cls in flat:
        try:
            with torch.device("meta"):
                return cls._from_config(config) if hasattr(cls, "_from_config") else cls(config)
        except Exception as error:  # a default config that its own model does not take
            errors.append(f"{type(error).__name__}: {error}")
    raise ValueError(errors[-1] if errors else "no model class takes this config")


def diffusers_types() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yields every model class of diffusers and what builds it."""
    import diffusers
    from diffusers.models.modeling_utils import ModelMixin

    def build(cls: type[nn.Module]) -> nn.Module:
        with torch.device("meta"):
            return cls()

    for name in dir(diffusers):
        if name.endswith(("Model", "2D", "3D", "UNet", "Transformer", "Prior")) and not name.startswith(("Flax", "_")):
            cls = getattr(diffusers, name)
            if isinstance(cls, type) and issubclass(cls, ModelMixin) and cls is not ModelMixin:
                yield name, partial(build, cls)


def examine(name: str, build: Callable[[], nn.Module]) -> Found:
    """Builds a model type, reads its structure and checks it."""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        model = build()
    except Exception as error:
        return Found(name, reason=f"{type(error).__name__}: {error}"[:120].replace("\n", " "))
    finally:
        signal.alarm(0)
    structure = read_structure(model)
    return Found(
        name,
        type(model).__name__,
        attentions=len(structure.attentions),
        feed_forwards=len(structure.feed_forwards),
        missing=_missing(model, structure),
        wrong=_wrong(model, structure),
    )


def _late(number: int, frame: object) -> None:
    raise TimeoutError(f"not built within {SECONDS} s")


def _missing(model: nn.Module, structure: Structure) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    used = {path for one in structure.attentions for path in (*one.inputs, *one.out)}
    found = {}
    for one in structure.attentions:
        roles = (("q", one.query), ("k", one.key), ("v", one.value), ("out", one.out))
        lacks = [role for role, paths in roles if not paths]
        if lacks:
            found[type(modules[one.path]).__name__] = f"lacks {', '.join(lacks)}"
    for path, module in modules.items():
        held = [name for name, part in module.named_modules() if name and ends_of(part)]
        called = is_attention_name(type(module).__name__) and ends_of(module) is None
        if called and held and not any(f"{path}.{name}".lstrip(".") in used for name in held):
            kinds = dict.fromkeys(re.sub(r"\d+", "#", name) for name in held)
            found[type(module).__name__] = f"holds {', '.join(list(kinds)[:4])}, and nothing was found in it"
    return tuple(f"{name} {what}" for name, what in found.items())


def _wrong(model: nn.Module, structure: Structure) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    found = {}
    for one in structure.attentions:
        above = one.path.rpartition(".")[0] if one.path else ""
        for path in (*one.inputs, *one.out):
            if path in structure.heads or not f"{path}.".startswith(f"{above}." if above else ""):
                found[path] = f"{path} is taken for a projection of {type(modules[one.path]).__name__}"
    for path, module in modules.items():
        if isinstance(module, nn.Embedding) and any(path in (*one.inputs, *one.out) for one in structure.attentions):
            found[path] = f"{path} is an embedding"
    return tuple(found.values())


def survey(wanted: tuple[str, ...] = ()) -> Iterator[Found]:
    """Examines every type, or those that are wanted."""
    for types in (transformers_types, diffusers_types):
        for name, build in types():
            if not wanted or name in wanted:
                yield examine(name, build)


def main() -> None:
    """Prints a line per type and the sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    begin = time.perf_counter()
    found = []
    for one in survey(tuple(arguments.types)):
        print(one, flush=True)
        found.append(one)
    built = [one for one in found if one.model]
    attending = [one for one in built if one.attentions or one.missing]
    complete = [one for one in attending if one.complete]
    share = 100 * len(complete) / len(attending) if attending else 100.0
    print(
        f"{len(found)} types, {len(built)} built, {len(attending)} with attention: q, k, v and out of every attention "
        f"in {len(complete)} ({share:.1f} %), {time.perf_counter() - begin:.0f} s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
