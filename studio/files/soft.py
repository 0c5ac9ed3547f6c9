"""Files of virtual tokens: soft prompts and prefixes, ours and PEFT's.

They belong to a model as a whole, so a key is a tensor's name without any path. PEFT tells its methods apart by
``peft_type`` alone and keeps only what their networks make (``prompt_embeddings``); our files keep the networks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.adapters import METHODS, AdapterConfig
from studio.adapters.hosting.attached import assemblies
from studio.adapters.sites.language import ModelSite
from studio.adapters.tokens.contract import PromptConfig, TokenAdapter, TokenConfig
from studio.atomic import atomic_folder, atomic_write, together
from studio.errors import BadFile, DoesNotFit
from studio.families import components
from studio.files.format import Format, Source
from studio.files.header import payload_hash, write_tensors
from studio.files.metadata import Entry, write_metadata
from studio.files.peft import CONFIG_FILE, TENSOR_FILE
from studio.files.peft_settings import refuse_unknown
from studio.files.reading import Reading

__all__ = ["FORMAT", "HEADS", "peft_form", "read_soft", "save_soft", "soft_config", "soft_method"]

FORMAT: Final = "studio"
_TASKS: Final = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_FIELDS: Final = ("num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens", "token_dim")
"""PEFT's fields of all methods of virtual tokens."""
HEADS: Final = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Layers whose weights PEFT wants beside the virtual tokens of a task, whether it trained them or not."""


def peft_types() -> dict[str, type[TokenConfig]]:
    """PEFT's word for each method of virtual tokens."""
    soft = [config for config in METHODS.values() if issubclass(config, TokenConfig)]
    return {config.adapter.peft.type: config for config in soft}


def soft_method(source: Source, own: Entry | None) -> str:
    """Returns the method of a file of virtual tokens, or "" for any other file."""
    if own is not None and own.method in METHODS and issubclass(METHODS[own.method], TokenConfig):
        return own.method
    stated = None if source.peft is None else source.peft.get("peft_type")
    config = peft_types().get(stated) if isinstance(stated, str) else None
    return "" if config is None else config.method


# -- reading -----------------------------------------------------------------------------------------------------------


def read_soft(module: nn.Module, source: Source, own: Entry | None, method: str) -> Reading:
    """Reads a file of virtual tokens for a language model.

    Raises:
        BadFile: it has no tensors of the method, or a config that cannot be read.
        DoesNotFit: its config asks for something that the studio does not do.
    """
    site = ModelSite("", module)
    names = set(METHODS[method].adapter.trained)
    if own is not None and own.config is not None and names & set(source.tensors):
        tensors = {name: tensor for name, tensor in source.tensors.items() if name in names}
        return _reading(method, own.config, tensors, {name: name for name in tensors}, source)
    if source.peft is None:
        raise BadFile(
            f"{source.file} holds virtual tokens of PEFT's, and no {CONFIG_FILE} beside it says of which method"
        )
    peft = METHODS[method].adapter.peft
    table = peft.tensors
    keys = {name: key for name, key in table.items() if key in source.tensors}
    missing = [key for name, key in table.items() if name not in keys]
    if missing:
        raise BadFile(f"{source.file} says it is of {source.peft.get('peft_type')} and lacks the tensor {missing[0]}")
    config = soft_config(source.peft, encodes_first=site.encodes_first)
    tensors = {name: source.tensors[key].float() for name, key in keys.items()}
    reading = _reading(method, config, tensors, keys, source)
    _drop_heads(module, source, reading)
    prompt = tensors.get("prompt")
    if prompt is not None and not _before_decoder(config) and len(prompt) == 2 * config.tokens:
        tensors["prompt"] = prompt[: config.tokens].clone()
        reading.notes.append("PEFT stores a second half of the prompt for a decoder and never reads it; it is left out")
    reading.layers[""] = peft.read(source.peft, site, tensors)
    return reading


def _before_decoder(config: TokenConfig) -> bool:
    """Whether virtual tokens stand before a decoder's input too."""
    return isinstance(config, PromptConfig) and config.decoder


def _reading(
    method: str, config: AdapterConfig, tensors: dict[str, Tensor], keys: Mapping[str, str], source: Source
) -> Reading:
    used = set(keys.values())
    reason = (
        "it is no tensor of this method: a whole tensor of the base (PEFT's modules_to_save), or of another adapter"
    )
    ignored = {key: reason for key in source.tensors if key not in used}
    return Reading(method, config, {"": dict(tensors)}, {"": tuple(sorted(used))}, ignored)


def _heads(module: nn.Module, task: str) -> dict[str, Tensor]:
    """The weights of the model's own head under PEFT's keys."""
    found = ((name, module._modules.get(name)) for name in HEADS.get(task, ()))
    return {
        f"base_model.{name}.{key}": tensor.detach()
        for name, head in found
        if head is not None
        for key, tensor in head.state_dict().items()
    }


def _drop_heads(module: nn.Module, source: Source, reading: Reading) -> None:
    """A head in a PEFT folder that is the model's own needs nothing to be done."""
    own = _heads(module, str((source.peft or {}).get("task_type")))
    same = [
        key
        for key, tensor in own.items()
        if key in reading.ignored and torch.equal(tensor.cpu().to(source.tensors[key].dtype), source.tensors[key])
    ]
    for key in same:
        del reading.ignored[key]
    reading.keys[""] = tuple(sorted({*reading.keys[""], *same}))


def soft_config(fields: Mapping[str, Any], *, encodes_first: bool = False) -> TokenConfig:
    """Makes our config of PEFT's fields.

    Args:
        fields: PEFT's config. encodes_first: whether the model has an encoder and a decoder.

    Raises:
        BadFile: a field has an impossible value. DoesNotFit: a field asks for what the studio does not do.
    """
    config = peft_types()[fields["peft_type"]]
    settings = config.adapter.peft.settings
    refuse_unknown(fields, config.method, CONFIG_FILE, {*_FIELDS, *settings.defaults})
    try:
        known: dict[str, Any] = {"tokens": int(fields["num_virtual_tokens"])}
        known |= settings.config({**fields, "is_encoder_decoder": encodes_first})
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{CONFIG_FILE} cannot be read as the config of a soft prompt: {error}") from None
    return config(**known)


# -- writing -----------------------------------------------------------------------------------------------------------


def save_soft(
    model: Any, file: Path, format: Format, name: str, facts: Mapping[str, str], dtype: torch.dtype | None
) -> Path:
    """Writes virtual tokens as one file of ours, or as a PEFT folder; see :func:`studio.save`.

    Raises:
        DoesNotFit: the format has no way to say it. BadFile: nothing can be written there.
    """
    if format.name == "kohya":
        raise DoesNotFit("kohya's format has no soft prompts; leave format out, or use 'peft'")
    adapter = dict(assemblies(model)[""].adapters(name))[""]
    assert isinstance(adapter, TokenAdapter), "the methods of virtual tokens sit on the model itself"
    fields, tensors = _with_heads(adapter) if format.folder else ({}, adapter.tensors())
    tensors = {key: tensor.detach() if dtype is None else tensor.detach().to(dtype) for key, tensor in tensors.items()}
    text = write_metadata(adapter.config, facts, name=name, parts=components(model), payload=payload_hash(tensors))
    text = {key: value for key, value in text.items() if not key.startswith(("ss_network", "modelspec.imp"))}
    if not format.folder:
        write_tensors(file, tensors, text)
    elif file.exists():  # beside other files of the user's
        with together():
            _write_folder(file, fields, tensors, text)
    else:
        with atomic_folder(file) as folder:
            _write_folder(folder, fields, tensors, text)
    return file


def _write_folder(
    folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], text: Mapping[str, str]
) -> None:
    atomic_write(folder / CONFIG_FILE, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    write_tensors(folder / TENSOR_FILE, tensors, text)


@torch.no_grad()
def peft_form(adapter: TokenAdapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns virtual tokens as PEFT has them: the fields of its config, and its tensors by name.

    Raises:
        DoesNotFit: PEFT has no way to say it.
    """
    config, site, peft = adapter.config, adapter.site, adapter.peft
    task = next(
        (word for end, word in _TASKS.items() if type(site.module).__name__.endswith(end)), "FEATURE_EXTRACTION"
    )
    fields: dict[str, Any] = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "num_attention_heads": int(getattr(site.config, "num_attention_heads", 1)),
        "num_layers": int(getattr(site.config, "num_hidden_layers", 1)),
        "num_transformer_submodules": 2 if _before_decoder(config) else 1,
        "num_virtual_tokens": config.tokens,
        "peft_type": peft.type,
        "revision": None,
        "task_type": task,
        "token_dim": site.rows,
    }
    sites, ours = {"": site}, {name: tensor.detach() for name, tensor in adapter.folded().items()}
    layers = peft.store(config, sites, {"": ours})
    fields |= {theirs: getattr(config, name) for name, theirs in peft.settings.fields.items()}
    fields |= peft.settings.state(config, sites, layers)
    stored = {peft.tensors[name]: tensor for name, tensor in layers[""].items()}
    return fields, stored


def _with_heads(adapter: TokenAdapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same with the model's own head beside it, which PEFT wants there."""
    fields, tensors = peft_form(adapter)
    heads = {key: tensor.clone() for key, tensor in _heads(adapter.site.module, fields["task_type"]).items()}
    if heads:
        fields["modules_to_save"] = list(HEADS[fields["task_type"]])
    return fields, {**tensors, **heads}
