"""Which layers PEFT adapts when nobody says, by the model type of transformers (as of PEFT 0.21)."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["default_feedforward", "default_targets"]


def _table(rows: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {model: tuple(names.split()) for names, models in rows.items() for model in models.split()}


_LORA: Final = _table(
    {
        "q_proj v_proj": "llama llama4 mistral mixtral qwen2 qwen3 gemma gemma2 gemma3_text opt bart gptj gpt_neo "
        "stablelm",
        "q v": "t5 mt5",
        "c_attn": "gpt2 gpt_bigcode",
        "query value": "bert roberta xlm-roberta electra layoutlm",
        "query_key_value": "bloom falcon gpt_neox chatglm",
        "q_proj v_proj fc1 fc2": "phi",
        "q v q_proj v_proj": "blip-2",
        "qkv_proj": "codegen",
        "in_proj": "deberta",
        "query_proj value_proj": "deberta-v2",
        "Wqkv": "mpt",
        "q_proj k_proj v_proj o_proj": "nemotron_h",
        "key value receptance output": "rwkv",
    }
)

_ADALORA: Final = _table(
    {
        "q k v o wi wo": "t5",
        "q k v o wi_0 wi_1 wo": "mt5",
        "q_proj k_proj v_proj out_proj fc1 fc2": "bart opt",
        "query key value dense": "roberta",
    }
)

_IA3: Final = _table(
    {
        "k_proj v_proj down_proj": "llama mistral",
        "q_proj v_proj down_proj": "llama4 qwen2 qwen3 gemma gemma2 gemma3_text",
        "k_proj v_proj w2": "mixtral",
        "c_attn mlp.c_proj": "gpt2 gpt_bigcode",
        "k v wo": "t5",
        "k v wi_1": "mt5",
        "q_proj k_proj fc2": "opt",
        "q_proj v_proj fc2": "phi bart",
        "key value output.dense": "bert roberta",
        "query_key_value mlp.dense_4h_to_h": "bloom",
        "query_key_value dense_4h_to_h": "falcon gpt_neox",
    }
)

_FEEDFORWARD: Final = {
    "down_proj",
    "w2",
    "mlp.c_proj",
    "wo",
    "fc2",
    "output.dense",
    "mlp.dense_4h_to_h",
    "dense_4h_to_h",
}

_BY_METHOD: Final = {"IA3": _IA3, "ADALORA": {**_LORA, **_ADALORA}}


def model_type(model: Any) -> str | None:
    """Returns the model type of a transformers model, or None."""
    config = getattr(model, "config", None)
    found = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    return found if isinstance(found, str) else None


def default_targets(model: Any, word: str) -> tuple[str, ...] | None:
    """Returns the layers that PEFT adapts by default with a method, or None where it has no default."""
    return _BY_METHOD.get(word, _LORA).get(model_type(model) or "")


def default_feedforward(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those of IA³'s default targets whose inputs are scaled."""
    return tuple(name for name in targets if name in _FEEDFORWARD)
