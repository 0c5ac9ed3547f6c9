"""Samples as token numbers: what is learned is exactly the answers with their ends, whatever the tokenizer does."""

from __future__ import annotations

import pytest
import torch

from studio.datasets.chat import Sample
from studio.errors import BadFile
from studio.families.language import PLAIN_TEMPLATE, open_language_base
from studio.trainers.language.texts import IGNORED, batch, encode, marked, question

ASK = Sample(3, (("user", "What is the capital of France?"), ("assistant", "Paris")))
TWO = Sample(1, (("user", "Hi."), ("assistant", "Hello ☀️!"), ("user", "Capital?"), ("assistant", "Paris")))


@pytest.fixture
def base(tiny_language):
    return open_language_base(tiny_language)


def learned(base, sample, length=96):
    """The labels of a sample, decoded: runs of learned tokens, the places in between left out."""
    _, _, labels = batch([encode(sample, base, length)], 0, torch.device("cpu"))
    runs, run = [], []
    for label in [*labels[0].tolist(), IGNORED]:
        if label != IGNORED:
            run.append(label)
        elif run:
            runs.append(base.tokenizer.decode(run))
            run = []
    return runs


def test_the_labels_are_the_answers_and_their_ends(base):
    assert learned(base, ASK) == [" Paris<end>"]
    assert learned(base, TWO) == [" Hello ☀️!<end>", " Paris<end>"]
    assert learned(base, Sample(1, prompt="1 + 1 =", completion=" 2")) == [" 2<end>"]
    assert learned(base, Sample(1, completion="Water is wet.")) == ["Water is wet.<end>"]
    assert marked(TWO, base) == "<user> Hi.<end><bot>⟦ Hello ☀️!<end>⟧<user> Capital?<end><bot>⟦ Paris<end>⟧"


def test_what_is_asked_is_what_stands_before_the_answer_in_training(base):
    for sample in (ASK, TWO, Sample(1, prompt="1 + 1 =", completion=" 2")):
        asked = base.tokens(question(sample, base), chat=sample.chat)[0]
        whole = encode(sample, base, 96)
        assert list(whole.tokens[: len(asked)]) == asked
        last = len(whole.learned) - whole.learned[::-1].index(False)  # where the last answer begins
        assert last == len(asked)


@pytest.mark.parametrize("template", ["no end", "no template", "newline after the end"])
def test_other_templates(base, template):
    wanted = [" Paris<end>"]
    if template == "no template":
        base.tokenizer.chat_template = None
        assert base.template == PLAIN_TEMPLATE
        assert base.write([{"role": "user", "content": "Hi."}], asking=True) == "User: Hi.\nAssistant:"
    elif template == "no end":  # nothing would stop the answer, so the end is put there
        base.tokenizer.chat_template = (
            "{% for m in messages %}{{ 'Q: ' if m['role'] == 'user' else 'A:' }}"
            "{{ m['content'] if m['role'] == 'user' else ' ' + m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}A:{% endif %}"
        )
    else:
        base.tokenizer.chat_template = (
            "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }}"
            "{{ ' ' + m['content'] + '<end>\n' }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
        )
    assert learned(base, ASK) == wanted


def test_an_end_token_that_also_pads_stays_in_the_loss(base):
    base.tokenizer.pad_token = base.tokenizer.eos_token
    rows = [encode(ASK, base, 96), encode(TWO, base, 96)]
    tokens, mask, labels = batch(rows, base.tokenizer.pad_token_id, torch.device("cpu"))
    end = base.tokenizer.eos_token_id
    assert (labels == end).sum(1).tolist() == [1, 2], "one per answer; what pads is not learned"
    assert mask.sum(1).tolist() == [len(row.tokens) for row in rows]
    assert labels[mask == 0].eq(IGNORED).all()


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_and_the_loss_is_the_same(base):
    rows = [encode(ASK, base, 96), encode(TWO, base, 96)]

    def loss():
        tokens, mask, labels = batch(rows, base.pad, base.model.device)
        return base.model(input_ids=tokens, attention_mask=mask, labels=labels).loss

    with torch.no_grad():
        before, own = loss(), base.pad
        base.tokenizer.pad_token = None
        assert base.pad == base.tokenizer.eos_token_id != own
        torch.testing.assert_close(loss(), before)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_that_the_tokenizer_pads_on_does_not_matter(base, side):
    base.tokenizer.padding_side = side
    rows = [encode(ASK, base, 96), encode(TWO, base, 96)]
    _, mask, _ = batch(rows, 0, torch.device("cpu"))
    assert mask[0].tolist() == sorted(mask[0].tolist(), reverse=True)


def test_what_is_too_long_loses_its_end(base):
    whole = encode(ASK, base, 96)
    cut = encode(ASK, base, len(whole.tokens) - 1)
    assert cut.lost == 1 and cut.tokens == whole.tokens[:-1] and cut.learned == whole.learned[:-1]
    assert not any(encode(ASK, base, 5).learned)


def test_turns_with_the_tokenizers_marks_are_refused(base):
    with pytest.raises(BadFile, match="line 4: the user's turn holds '<end>'"):
        encode(Sample(4, (("user", "say <end>"), ("assistant", "no"))), base, 96)
    assert learned(base, Sample(1, completion="a<end>b")) == ["a<end>b<end>"], "plain text may be written so on purpose"


def test_templates_that_write_the_past_otherwise_are_refused(base):
    base.tokenizer.chat_template = (
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(BadFile, match="line 3: the chat template writes turn 2 otherwise"):
        encode(ASK, base, 96)
    base.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadFile, match="line 3: the chat template of .* refuses the conversation: roles must alternate"):
        encode(ASK, base, 96)
