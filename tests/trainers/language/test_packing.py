"""Packing is a layout: the same losses and gradients as samples one by one, or a refusal."""

from __future__ import annotations

import json

import pytest
import torch

from studio.adapters import LoRA, PrefixTuning, attach, state
from studio.errors import DoesNotFit
from studio.families.language import LanguageBase
from studio.trainers import CausalLM, train
from studio.trainers.language.packing import check_packs, packed
from studio.trainers.language.texts import IGNORED, TokenRow
from studio.trainers.loop.plan import Plan
from tiny import LANGUAGE_MODELS, language


def row(*tokens, learned=None):
    return TokenRow(None, tokens, tuple(learned or [True] * len(tokens)))  # type: ignore[arg-type]


def test_samples_stand_behind_each_other_and_begin_at_position_0():
    rows = [row(5, 6, 7), row(8, 9, learned=[False, True]), row(10, 11, 12, 13), row(14)]
    tokens, positions, labels = packed(rows, 0, 6, torch.device("cpu"))
    assert tokens.tolist() == [[5, 6, 7, 8, 9, 14], [10, 11, 12, 13, 0, 0]]
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    no = IGNORED
    assert labels.tolist() == [[no, 6, 7, no, 9, no], [no, 11, 12, 13, no, no]]


class Padded:
    pad_token_id = 0


@pytest.mark.parametrize("name", [name for name, (kind, _, _) in LANGUAGE_MODELS.items() if "LM" in kind])
def test_a_model_that_keeps_samples_apart_is_packed_and_another_is_refused(name):
    """OPT counts positions over the whole row, whatever it is told; the others go by position_ids."""
    base = LanguageBase(language(name), Padded(), name)
    rows = [row(*range(2, 11)), row(*range(20, 40))]
    if name == "opt":
        with pytest.raises(DoesNotFit, match=r"packing: opt reads a sample otherwise behind another one than alone"):
            check_packs(base, rows)
        return
    check_packs(base, rows)
    tokens, positions, labels = packed(rows, 0, 64, torch.device("cpu"))
    together = base.model(input_ids=tokens, position_ids=positions, labels=labels, use_cache=False).loss
    single = [torch.tensor([one.tokens]) for one in rows]
    losses = [base.model(input_ids=one, labels=one).loss * (one.shape[1] - 1) for one in single]
    alone = sum(losses) / sum(one.shape[1] - 1 for one in single)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"text": f"{n} " * (1 + 5 * (n % 4))}) + "\n" for n in range(12)))
    return file


def test_a_packed_training_is_the_same_training(tiny_language, data, tmp_path):
    settings = {"adapter": LoRA(rank=2), "steps": 4, "batch_size": 6, "quiet": True}
    runs = [
        train(CausalLM(base=tiny_language, data=data, packing=packing, held_out=data, answers=0),
              output=tmp_path / str(packing), **settings)
        for packing in (False, True)
    ]  # fmt: skip
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-5)
    assert runs[0].measures[4] == pytest.approx(runs[1].measures[4], rel=1e-5)


def test_the_gradients_are_the_same(tiny_language, data):
    made = []
    for packing in (False, True):
        lesson = CausalLM(base=tiny_language, data=data, packing=packing).open(LoRA(rank=2), Plan(), lambda line: None)
        attach(lesson.model, lesson.adapter, name="x")
        lesson.loss(range(8)).total.backward()
        made.append({key: tensor.grad for key, tensor in state(lesson.model, "x").items() if tensor.grad is not None})
    assert made[0] and made[0].keys() == made[1].keys()
    for key, wanted in made[0].items():
        torch.testing.assert_close(made[1][key], wanted, rtol=1e-4, atol=1e-7)


def test_virtual_tokens_and_packing_do_not_go_together(tiny_language, data):
    with pytest.raises(DoesNotFit, match="packing: prefixtuning puts virtual tokens before a row"):
        CausalLM(base=tiny_language, data=data, packing=True).open(PrefixTuning(tokens=2), Plan(), lambda line: None)
