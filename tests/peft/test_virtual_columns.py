"""Outputs of prompt-tuned models have the columns of their virtual tokens, and labels beside them, as PEFT's have.

The oracle is `peft`: it writes a folder of random tensors, which is read here, and both are called with one batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import studio.peft as ours
from studio.errors import DoesNotFit
from tiny import language

theirs = pytest.importorskip("peft")

M = 4
SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 3}  # fmt: skip
BUILT = ("Llama", "Bert", "Bloom")
METHODS = {
    "prompt": lambda lib, task: lib.PromptTuningConfig(task_type=task, num_virtual_tokens=M),
    "network": lambda lib, task: lib.PromptEncoderConfig(task_type=task, num_virtual_tokens=M, encoder_hidden_size=6),
    "multitask": lambda lib, task: lib.MultitaskPromptTuningConfig(
        task_type=task, num_virtual_tokens=M, num_tasks=3, num_ranks=2
    ),
    "prefix": lambda lib, task: lib.PrefixTuningConfig(task_type=task, num_virtual_tokens=M),
}


def made(kind: str) -> nn.Module:
    """One of the tiny models, or a class of transformers with random weights."""
    if not kind.startswith(BUILT):
        return language(kind)
    config = next(name for name in BUILT if kind.startswith(name)) + "Config"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {**SIZES, "num_labels": 2} if "QuestionAnswering" in kind else SIZES
        return getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()


def pair(folder: Path, kind: str, method: str, task: str) -> tuple[Any, Any]:
    """PEFT's model and ours, with the same tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        their = theirs.get_peft_model(made(kind), METHODS[method](theirs, task)).eval()
        with torch.no_grad():
            for parameter in their.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.5)
    their.save_pretrained(folder)
    return their, ours.PeftModel.from_pretrained(made(kind), folder).eval()


def batch(side: str, method: str = "prompt") -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (3, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if side == "right":
        mask[1, -2:] = mask[2, -1:] = 0
    if side == "left":
        mask[1, :2] = mask[2, :1] = 0
    given = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    return {**given, "task_ids": torch.tensor([2, 0, 1])} if method == "multitask" else given


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["none", "right"])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "prompt") for kind in ("llama", "mistral", "gemma3", "gpt2", "opt", "BloomForCausalLM")),
        *(("llama", method) for method in ("network", "multitask", "prefix")),
    ],
)
def test_logits_and_loss_are_pefts(tmp_path: Path, kind: str, method: str, side: str) -> None:
    their, mine = pair(tmp_path, kind, method, "CAUSAL_LM")
    given = batch(side, method)
    wanted, found = their(**given, output_hidden_states=True), mine(**given, output_hidden_states=True)
    assert found.logits.shape == wanted.logits.shape
    read = torch.ones(3, wanted.logits.shape[1], dtype=torch.bool)
    if method == "prefix":  # what is computed for padding is nobody's
        read = given["attention_mask"].bool()
    close(found.logits[read], wanted.logits[read])
    close(found.loss, wanted.loss)
    assert [one.shape for one in found.hidden_states] == [one.shape for one in wanted.hidden_states]
    close(mine(**{**given, "labels": None}).logits, found.logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "BloomForCausalLM"])
@pytest.mark.parametrize("embedded", [False, True])
def test_rows_padded_on_the_left_are_pefts_rows_alone(tmp_path: Path, kind: str, embedded: bool) -> None:
    """In a batch PEFT puts padding between the virtual tokens and the text, which moves the text away from them."""
    their, mine = pair(tmp_path, kind, "prompt", "CAUSAL_LM")
    given = batch("left")
    if embedded:
        given["inputs_embeds"] = made(kind).get_input_embeddings()(given.pop("input_ids")).detach()
    found, losses = mine(**given), []
    for row, ids in enumerate(batch("left")["input_ids"]):
        text = ids[given["attention_mask"][row].bool()][None]
        wanted = their(input_ids=text, labels=text)
        close(found.logits[row, -wanted.logits.shape[1] :], wanted.logits[0])
        losses += [wanted.loss] * text.shape[1]
    close(found.loss, torch.stack(losses).mean())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "BloomForCausalLM"])
@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_a_batch_of_several_prompts_is_its_rows_alone(tmp_path: Path, kind: str, side: str) -> None:
    _, mine = pair(tmp_path, kind, "prompt", "CAUSAL_LM")
    torch.manual_seed(3)
    mine.add_adapter("other", ours.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    names, given, losses = ["default", "__base__", "other"], batch(side), []
    with torch.no_grad():
        found = mine(**given, adapter_names=names)
        assert found.logits.shape == (3, M + 2 + 5, 64)
        for row, name in enumerate(names):
            read = given["attention_mask"][row].bool()
            text = given["input_ids"][row][read][None]
            alone = mine(input_ids=text, labels=text, adapter_names=[name])
            close(found.logits[row, -5:][read], alone.logits[0, -text.shape[1] :])
            losses += [alone.loss] * (text.shape[1] - (name == "__base__"))  # its first token follows nothing
        close(found.loss, torch.stack(losses).mean())


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_labels_may_be_given_by_place_and_what_is_off_adds_none(tmp_path: Path, side: str) -> None:
    _, mine = pair(tmp_path, "llama", "prompt", "CAUSAL_LM")
    given = batch(side)
    names = ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels")
    close(mine(*(given.get(name) for name in names)).loss, mine(**given).loss)
    with mine.disable_adapter():
        off, base = mine(**given), made("llama")(**given)
        assert torch.equal(off.logits, base.logits) and torch.equal(off.loss, base.loss)
    text = mine.get_base_model()(**given)  # the core gives one per token of the text
    read = given["attention_mask"].bool()
    close(text.logits[read], mine(**given).logits[:, -5:][read])


def test_a_call_that_goes_on_from_a_cache_has_the_text_alone(tmp_path: Path) -> None:
    _, mine = pair(tmp_path, "llama", "prompt", "CAUSAL_LM")
    ids = batch("none")["input_ids"]
    whole = mine(ids).logits
    first = mine(ids[:, :3], use_cache=True)
    assert first.logits.shape == (3, M + 3, 64)
    later = mine(input_ids=ids[:, 3:], labels=ids[:, 3:], past_key_values=first.past_key_values)
    close(torch.cat([first.logits, later.logits], dim=1), whole)
    close(later.loss, nn.functional.cross_entropy(later.logits[:, 0], ids[:, 4]))


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_generation_is_pefts(tmp_path: Path, how: dict[str, Any]) -> None:
    their, mine = pair(tmp_path, "llama", "prompt", "CAUSAL_LM")
    given = {name: batch("none")[name] for name in ("input_ids", "attention_mask")}
    made_by = [one.generate(**given, max_new_tokens=6, do_sample=False, pad_token_id=0, **how) for one in (their, mine)]
    assert torch.equal(*made_by)


@pytest.mark.parametrize("kind", ["BertForTokenClassification", "LlamaForTokenClassification"])
@pytest.mark.parametrize("side", ["none", "right"])
def test_token_classes_are_pefts(tmp_path: Path, kind: str, side: str) -> None:
    their, mine = pair(tmp_path, kind, "prompt", "TOKEN_CLS")
    given = batch(side)
    labels = (given["labels"] % 3).masked_fill(given["attention_mask"] == 0, -100)
    wide = torch.cat([labels.new_full((3, M), -100), labels], dim=1)  # as PEFT has to be given them
    wanted = their(**{**given, "labels": wide})
    for given_labels in (wide, labels):
        found = mine(**{**given, "labels": given_labels})
        close(found.logits, wanted.logits)
        close(found.loss, wanted.loss)


@pytest.mark.parametrize("kind", ["BertForQuestionAnswering", "LlamaForQuestionAnswering"])
def test_answers_are_counted_as_peft_counts_them(tmp_path: Path, kind: str) -> None:
    their, mine = pair(tmp_path, kind, "prompt", "QUESTION_ANS")
    given = {name: batch("right")[name] for name in ("input_ids", "attention_mask")}
    places = {"start_positions": torch.tensor([0, 1, 6]), "end_positions": torch.tensor([2, 2, 7])}
    wanted, found = their(**given, **places), mine(**given, **places)
    assert found.start_logits.shape == (3, M + 5)
    for name in ("start_logits", "end_logits", "loss"):
        close(found[name], wanted[name])


@pytest.mark.parametrize("kind", ["BertModel", "LlamaModel"])
def test_features_are_pefts(tmp_path: Path, kind: str) -> None:
    their, mine = pair(tmp_path, kind, "prompt", "FEATURE_EXTRACTION")
    given = {name: batch("right")[name] for name in ("input_ids", "attention_mask")}
    wanted, found = their(**given), mine(**given)
    assert found.last_hidden_state.shape == (3, M + 5, 16)
    close(found.last_hidden_state, wanted.last_hidden_state)
    if "pooler_output" in wanted:
        close(found.pooler_output, wanted.pooler_output)


@pytest.mark.parametrize("kind", [f"{model}ForSequenceClassification" for model in BUILT])
def test_a_classifier_of_texts_reads_the_text(tmp_path: Path, kind: str) -> None:
    """Three labels for three rows of five: none of them is a label of a token."""
    their, mine = pair(tmp_path, kind, "prompt", "SEQ_CLS")
    ids = batch("none")["input_ids"]
    wanted = their(ids).logits
    close(mine(ids, labels=torch.tensor([0, 1, 2])).logits, wanted)
    mine.__class__ = ours.PeftModelForCausalLM  # a task that is not the model's changes no place that it reads
    close(mine(ids).logits, wanted)


def test_a_mask_with_more_axes_is_refused_in_one_sentence(tmp_path: Path) -> None:
    _, mine = pair(tmp_path, "llama", "prompt", "CAUSAL_LM")
    given = batch("none")
    with pytest.raises(DoesNotFit, match="attention_mask of shape"):
        mine(**{**given, "attention_mask": torch.ones(3, 1, 5, 5)})
