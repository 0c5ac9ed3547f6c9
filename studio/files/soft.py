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
from studio.adapters.methods.multitaskprompt import MultitaskPrompt
from studio.adapters.methods.prefixtuning import PrefixTuning, PrefixTuningAdapter
from studio.adapters.methods.prompttuning import PromptTuning
from studio.adapters.methods.ptuning import PTuning, PTuningAdapter
from studio.adapters.sites.language import ModelSite
from studio.adapters.tokens.contract import TokenAdapter, TokenConfig
from studio.atomic import atomic_folder, atomic_path
from studio.errors import BadFile, DoesNotFit
from studio.families import family_of
from studio.files.format import Format, Source
from studio.files.header import payload_hash, write_tensors
from studio.files.metadata import Own, write_metadata
from studio.files.peft import CONFIG_FILE, TENSOR_FILE
from studio.files.peft_settings import refuse_unknown
from studio.files.reading import Reading

__all__ = ["FORMAT", "peft_form", "read_soft", "save_soft", "soft_config", "soft_method"]

FORMAT: Final = "studio"
EMBEDDINGS: Final = "prompt_embeddings"
_TASKS: Final = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_FIELDS: Final = frozenset(
    "num_attention_heads num_layers num_transformer_submodules num_virtual_tokens token_dim "
    "prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs prompt_tuning_init_task "
    "prompt_tuning_init_state_dict_path num_tasks num_ranks encoder_reparameterization_type encoder_hidden_size "
    "encoder_num_layers encoder_dropout prefix_projection".split()
)
"""PEFT's fields of virtual tokens: they are read, or do not change what its tensors mean."""
_HEADS: Final = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Layers whose weights PEFT wants beside the virtual tokens of a task, whether it trained them or not."""


def peft_types() -> dict[str, type[TokenConfig]]:
    """PEFT's word for each method of virtual tokens."""
    soft = [config for config in METHODS.values() if issubclass(config, TokenConfig)]
    return {config.adapter.foreign.peft_type: config for config in soft}


def soft_method(source: Source, own: Own | None) -> str:
    """Returns the method of a file of virtual tokens, or "" for any other file."""
    if own is not None and own.method in METHODS and issubclass(METHODS[own.method], TokenConfig):
        return own.method
    stated = None if source.peft is None else source.peft.get("peft_type")
    config = peft_types().get(stated) if isinstance(stated, str) else None
    return "" if config is None else config.method


# -- reading -----------------------------------------------------------------------------------------------------------


def read_soft(module: nn.Module, source: Source, own: Own | None, method: str) -> Reading:
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
    table = METHODS[method].adapter.foreign.peft_tensors
    keys = {name: key for name, key in table.items() if key in source.tensors}
    missing = [key for name, key in table.items() if name not in keys]
    if missing:
        raise BadFile(f"{source.file} says it is of {source.peft.get('peft_type')} and lacks the tensor {missing[0]}")
    config = soft_config(source.peft, encodes_first=site.encodes_first)
    tensors = {name: source.tensors[key].float() for name, key in keys.items()}
    reading = _reading(method, config, tensors, keys, source)
    _drop_heads(module, source, reading)
    prompt = tensors.get("prompt")
    if prompt is not None and not isinstance(config, MultitaskPrompt) and len(prompt) == 2 * config.tokens:
        reading.layers[""]["prompt"] = prompt[: config.tokens].clone()
        reading.notes.append("PEFT stores a second half of the prompt for a decoder and never reads it; it is left out")
    if isinstance(config, PrefixTuning) and site.encodes_first:
        reading.layers[""]["prefix"] = _unshared(site, config, tensors["prefix"])
    return reading


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
    found = ((name, module._modules.get(name)) for name in _HEADS.get(task, ()))
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
    refuse_unknown(fields, _FIELDS, CONFIG_FILE)
    kind = peft_types()[fields["peft_type"]]
    try:
        known: dict[str, Any] = {"tokens": int(fields["num_virtual_tokens"])}
        if kind is MultitaskPrompt:
            twice = (fields.get("num_transformer_submodules") or (2 if encodes_first else 1)) == 2
            known |= {"tasks": int(fields["num_tasks"]), "rank": int(fields["num_ranks"]), "decoder": twice}
        if kind is PTuning:
            known["encoder"] = str(fields.get("encoder_reparameterization_type") or "MLP").rpartition(".")[2].lower()
            known["hidden"] = fields.get("encoder_hidden_size")
            if known["encoder"] == "lstm":
                known["layers"] = int(fields.get("encoder_num_layers") or 2)
                known["dropout"] = float(fields.get("encoder_dropout") or 0.0)
        if kind is PrefixTuning and encodes_first:
            known["places"] = ("decoder",)
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"{CONFIG_FILE} cannot be read as the config of a soft prompt: {error}") from None
    return kind(**known)


def _unshared(site: ModelSite, config: PrefixTuning, prefix: Tensor) -> Tensor:
    """PEFT's prefix of a decoder that has an encoder: doubled, and read four columns per layer, of which two act.

    So the l-th layer reads the parts ``4l`` and ``4l + 1``, counted round; half of what is stored is never read.
    """
    layers = [attention for attention in site.attentions() if attention.place == "decoder"]
    parts = 2 * len(layers)
    if prefix.shape[1] != sum(2 * attention.width for attention in layers):
        raise DoesNotFit(
            f"the prefix has {prefix.shape[1]} numbers per token, and the {len(layers)} layers of "
            f"{type(site.module).__name__} need {sum(2 * attention.width for attention in layers)}"
        )
    columns = prefix.view(len(prefix), parts, -1)
    order = [(4 * layer + part) % parts for layer in range(len(layers)) for part in (0, 1)]
    return columns[:, order].reshape(len(prefix), -1)


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
    fields, tensors = peft_form(adapter) if format.folder else ({}, adapter.tensors())
    tensors = {key: tensor.detach() if dtype is None else tensor.detach().to(dtype) for key, tensor in tensors.items()}
    text = write_metadata(adapter.config, facts, name=name, family=family_of(model), payload=payload_hash(tensors))
    text = {key: value for key, value in text.items() if not key.startswith(("ss_network", "modelspec.imp"))}
    if not format.folder:
        write_tensors(file, tensors, text)
    elif file.exists():  # beside other files of the user's
        with atomic_path(file / CONFIG_FILE) as temporary:
            _write_folder(temporary, file / TENSOR_FILE, fields, tensors, text)
    else:
        with atomic_folder(file) as folder:
            _write_folder(folder / CONFIG_FILE, folder / TENSOR_FILE, fields, tensors, text)
    return file


def _write_folder(
    config: Path, file: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], text: Mapping[str, str]
) -> None:
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tensors(file, tensors, text)


@torch.no_grad()
def peft_form(adapter: TokenAdapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns virtual tokens as PEFT has them: the fields of its config, and its tensors by name.

    Raises:
        DoesNotFit: PEFT has no way to say it.
    """
    config: Any = adapter.config
    site, foreign = adapter.site, adapter.foreign
    task = next(
        (word for end, word in _TASKS.items() if type(site.module).__name__.endswith(end)), "FEATURE_EXTRACTION"
    )
    fields: dict[str, Any] = {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "num_attention_heads": int(getattr(site.config, "num_attention_heads", 1)),
        "num_layers": int(getattr(site.config, "num_hidden_layers", 1)),
        "num_transformer_submodules": 2 if getattr(config, "decoder", False) else 1,
        "num_virtual_tokens": config.tokens,
        "peft_type": foreign.peft_type,
        "revision": None,
        "task_type": task,
        "token_dim": site.rows,
    }
    heads = {key: tensor.clone() for key, tensor in _heads(site.module, task).items()}
    if heads:
        fields["modules_to_save"] = list(_HEADS[task])
    if isinstance(config, PrefixTuning):
        assert isinstance(adapter, PrefixTuningAdapter)
        more, prefix = _peft_prefix(adapter)
        return fields | more, {EMBEDDINGS: prefix, **heads}
    if getattr(config, "decoder", False) and not isinstance(config, MultitaskPrompt):
        raise DoesNotFit(f"PEFT puts no {type(config).__name__} before a decoder's input; save it as .safetensors")
    if isinstance(config, PTuning):
        assert isinstance(adapter, PTuningAdapter)
        fields |= {
            "encoder_dropout": config.dropout,
            "encoder_hidden_size": config.hidden or site.rows,
            "encoder_num_layers": config.layers,
            "encoder_reparameterization_type": config.encoder.upper(),
        }
        return fields, {EMBEDDINGS: adapter.embedded(1, None).detach().clone(), **heads}
    if isinstance(config, (PromptTuning, MultitaskPrompt)):
        fields |= {"prompt_tuning_init": "RANDOM"}  # what it started from matters no more
    fields |= {theirs: getattr(config, ours) for ours, theirs in foreign.peft_fields.items()}
    stored = {foreign.peft_tensors[name]: tensor.detach() for name, tensor in adapter.tensors().items()}
    return fields, {**stored, **heads}


def _peft_prefix(adapter: PrefixTuningAdapter) -> tuple[dict[str, Any], Tensor]:
    site, prefix = adapter.site, adapter.made().detach()
    chosen = [attention for _, attention in adapter.spans.values()]
    if site.encodes_first and set(adapter.places) != {"decoder"}:
        raise DoesNotFit(
            "PEFT has no prefix in an encoder or in cross-attention; save it as .safetensors, or attach with "
            "places=('decoder',)"
        )
    heads, size = chosen[0].heads, chosen[0].size
    if any((attention.heads, attention.size) != (heads, size) for attention in chosen):
        raise DoesNotFit("PEFT has one number of key heads for all layers, and this model has several")
    if site.encodes_first:
        prefix = _shared(prefix, len(chosen))
    fields = {
        "encoder_hidden_size": None,
        "init_weights": None,
        "num_attention_heads": heads,
        "num_layers": len(chosen),
        "num_transformer_submodules": 2 if site.encodes_first else 1,
        "prefix_projection": False,
        "token_dim": heads * size,
    }
    return fields, prefix.clone()


def _shared(prefix: Tensor, layers: int) -> Tensor:
    """The other way round: what PEFT has to store for a decoder that has an encoder; see :func:`_unshared`."""
    parts = 2 * layers
    columns = prefix.reshape(len(prefix), parts, -1)
    stored = torch.zeros_like(columns)
    for layer in range(layers):
        for part in (0, 1):
            stored[:, (4 * layer + part) % parts] = columns[:, 2 * layer + part]
    again = stored[:, [(4 * layer + part) % parts for layer in range(layers) for part in (0, 1)]]
    if not torch.equal(again, columns):
        raise DoesNotFit(
            f"PEFT gives the layers l and l + {layers // 2} of a decoder that has an encoder the same prefix, and "
            "these differ; save it as .safetensors"
        )
    return stored.reshape(len(prefix), -1)
