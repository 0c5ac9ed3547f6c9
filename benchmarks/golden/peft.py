"""PEFT's names: train, save, load, combine and merge each method on a tiny Llama."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.golden.adapters import shake
from benchmarks.golden.record import REFUSED, Record
from benchmarks.golden.subjects import IDS, MASK, SUBJECTS, logits
from studio import peft

ON: Final[Mapping[str, Any]] = {"target_modules": ["q_proj", "v_proj"]}
TEXT: Final[Mapping[str, Any]] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
CONFIGS: Final[Mapping[str, Any]] = {
    "lora": peft.LoraConfig(r=2, lora_alpha=3, task_type=peft.TaskType.CAUSAL_LM),
    "rslora": peft.LoraConfig(r=2, lora_dropout=0.2, use_rslora=True, init_lora_weights="gaussian", **ON),
    "pissa": peft.LoraConfig(r=2, init_lora_weights="pissa", rank_pattern={"q_proj": 3}, **ON),
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules="all-linear"),
    "heads": peft.LoraConfig(r=2, modules_to_save=["norm"], trainable_token_indices={"embed_tokens": [3, 7]}, **ON),
    "adalora": peft.AdaLoraConfig(init_r=3, target_r=2, total_step=3, **ON),
    "adalora-early": peft.AdaLoraConfig(init_r=3, target_r=2, tinit=5, tfinal=2, total_step=20, **ON),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(r=2, alpha=3, **ON),
    "lokr": peft.LoKrConfig(r=2, alpha=3, decompose_both=True, **ON),
    "oft": peft.OFTConfig(oft_block_size=4, **ON),
    "boft": peft.BOFTConfig(boft_block_size=2, **ON),
    "hra": peft.HRAConfig(r=2, **ON),
    "vera": peft.VeraConfig(r=4, **ON),
    "road": peft.RoadConfig(group_size=4, variant="road_2", **ON),
    "lntuning": peft.LNTuningConfig(target_modules=["norm"]),
    "tokens": peft.TrainableTokensConfig(token_indices=[3, 7], target_modules=["embed_tokens"]),
    "prompt": peft.PromptTuningConfig(**TEXT),
    "ptuning": peft.PromptEncoderConfig(encoder_hidden_size=6, **TEXT),
    "prefix": peft.PrefixTuningConfig(**TEXT),
    "projection": peft.PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=6, **TEXT),
    "multitask": peft.MultitaskPromptTuningConfig(num_ranks=2, **TEXT),
}
ONE_WAY: Final[Mapping[str, Mapping[str, Any]]] = {"": {}}
LORA_WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    **{way: {"combination_type": way} for way in "linear cat svd".split()},
    **{
        way: {"combination_type": way, "density": 0.6}
        for way in "ties ties_svd dare_linear dare_ties_svd magnitude_prune".split()
    },
}
"""The ways to combine adapters, with their options."""
SUBJECT: Final = SUBJECTS["llama"]


def make_peft() -> None:
    """Every config on a tiny Llama."""
    for name, config in CONFIGS.items():
        record = Record(Path("peft/llama", name))
        torch.manual_seed(4)
        model = record.attempt("get_peft_model", peft.get_peft_model, SUBJECT.make(), copy.deepcopy(config))
        if model is not REFUSED:
            make_case(record, model, config)
        record.write()


def make_case(record: Record, model: Any, config: Any) -> None:
    """Trains, uses, saves, loads, combines and merges one adapter."""
    train(record, model, config)
    record.attempt_output("live", SUBJECT.output, model)
    record.say("status", record.attempt("status", model.get_model_status))
    record.attempt("save", model.save_pretrained, record.folder / "saved")
    record.attempt("save bin", model.save_pretrained, record.folder / "bin", safe_serialization=False)
    for kind in ("saved", "bin"):
        load = peft.PeftModel.from_pretrained
        again = record.attempt(f"load {kind}", load, SUBJECT.make(), record.folder / kind)
        if again is not REFUSED:
            record.attempt_output(f"loaded {kind}", SUBJECT.output, again)
    with model.disable_adapter():
        record.attempt_output("disabled", SUBJECT.output, model)
    combine(record, model, config)
    merged = record.attempt("merge", model.merge_and_unload)
    if merged is not REFUSED:
        record.attempt_output("merged", SUBJECT.output, merged)


def train(record: Record, model: Any, config: Any) -> None:
    """Three steps, with the state before and after."""
    record.say("parameters", model.get_nb_trainable_parameters())
    record.say("trained", [name for name, parameter in model.named_parameters() if parameter.requires_grad])
    record.keep("start", peft.get_peft_model_state_dict(model))
    tasks = torch.zeros(len(IDS), dtype=torch.long)
    told = {"task_ids": tasks} if isinstance(config, peft.MultitaskPromptTuningConfig) else {}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    torch.manual_seed(7)
    for step in range(3):
        loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS, **told).loss
        loss.backward()
        optimizer.step()
        if isinstance(config, peft.AdaLoraConfig):
            model.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        record.say(f"loss {step}", loss.item())
    record.keep("trained", peft.get_peft_model_state_dict(model))


def combine(record: Record, model: Any, config: Any) -> None:
    """A second adapter, combinations of the two, and an adapter for each row."""
    torch.manual_seed(8)
    if record.attempt("a second adapter", model.add_adapter, "second", copy.deepcopy(config)) is REFUSED:
        return
    model.set_adapter("second")
    shake(model.parameters(), scale=0.1)
    record.attempt_output("second", SUBJECT.output, model)
    for way, options in (LORA_WAYS if isinstance(config, peft.LoraConfig) else ONE_WAY).items():
        torch.manual_seed(9)
        name = f"combined-{way}"
        both = (["default", "second"], [0.7, 0.4], name)
        if record.attempt(name, model.add_weighted_adapter, *both, **options) is not REFUSED:
            model.set_adapter(name)
            record.attempt_output(name, SUBJECT.output, model)
    record.attempt_output("a row each", logits, model.eval(), adapter_names=["second", "__base__", "default"])
    model.set_adapter("default")
