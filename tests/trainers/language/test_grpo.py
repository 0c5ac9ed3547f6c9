"""GRPO through the one loop: the formulas by hand, draws that depend on (seed, n), rewards, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from studio.adapters import LoRA, attach
from studio.datasets.prompts import Prompt, prompt_of
from studio.datasets.records import Record
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.pipelines.write import write as say
from studio.trainers import GRPO, Reward, train
from studio.trainers.language.grpo import GRPOLesson
from studio.trainers.language.policy_losses import advantages, grpo
from studio.trainers.language.rewards import REWARDS, check_reward, each, function_of
from studio.trainers.loop.plan import Plan
from tiny import interrupted, shaken

FACTS = [("Peru", "Lima"), ("Mali", "Bamako"), ("Chad", "N'Djamena"), ("Fiji", "Suva"), ("Cuba", "Havana")]
SETTINGS = {"batch_size": 2, "quiet": True, "checkpoint_every": 2, "adapter": LoRA(rank=2), "learning_rate": 1e-2}


def letters(prompt: str, completion: str, answer: str | None) -> float:
    """Which share of the characters are small letters."""
    return sum(sign.islower() for sign in completion) / max(len(completion), 1)


def write(file, entries):
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return file


def asked(facts):
    return [{"prompt": [{"role": "user", "content": f"Capital of {s}?"}], "answer": a} for s, a in facts]


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.jsonl", asked(FACTS))


@pytest.fixture
def task(tiny_language, data, tmp_path):
    held_out = write(tmp_path / "held-out.jsonl", asked([("Oman", "Muscat"), ("Togo", "Lome")]))
    return GRPO(base=tiny_language, data=data, held_out=held_out, reward=letters, group=4, max_new_tokens=6)


def opened(task, **plan):
    """A lesson whose adapter is attached and has moved."""
    lesson = task.open(LoRA(rank=2), Plan(**{"batch_size": 2, **plan}), lambda line: None)
    lesson.prepare(lambda line: None)
    attach(lesson.model, LoRA(rank=2), name=lesson.name, seed=0)
    return lesson


def test_advantages_are_normalised_in_the_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.5], [0.1, 0.1, 0.1, 0.1]], dtype=torch.float64)
    deviation = math.sqrt(sum((r - 0.375) ** 2 for r in (1.0, 0.0, 0.0, 0.5)) / 3)
    wanted = [(r - 0.375) / (deviation + 1e-4) for r in (1.0, 0.0, 0.0, 0.5)]
    torch.testing.assert_close(advantages(rewards)[0], torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    assert advantages(rewards)[1].tolist() == [0.0] * 4 == advantages(torch.full((1, 4), 0.1))[0].tolist()


@pytest.mark.parametrize("advantage", [1.5, -0.5])
@pytest.mark.parametrize("now", [-1.0, -0.9, -0.5, -1.4])
def test_the_clipped_loss_is_the_papers(now, advantage):
    drawn, reference, clip, beta = -1.0, -1.2, 0.2, 0.04
    q, d = math.exp(now - drawn), reference - now
    off = math.exp(d) - d - 1
    wanted = -min(q * advantage, min(max(q, 1 - clip), 1 + clip) * advantage) + beta * off
    given = [torch.tensor([one], dtype=torch.float64) for one in (now, drawn, reference, advantage)]
    given[0].requires_grad_()
    loss, found = grpo(*given, clip, beta)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-12)
    assert float(found.detach()) == pytest.approx(off, rel=1e-12) and off > 0
    loss.backward()
    clipped = (advantage > 0 and q > 1 + clip) or (advantage < 0 and q < 1 - clip)
    slope = (0 if clipped else -q * advantage) + beta * (1 - math.exp(d))
    assert float(given[0].grad) == pytest.approx(slope, rel=1e-12)


def test_a_group_is_a_pure_function_of_the_seed_its_number_and_the_weights(task):
    lesson = opened(task)
    shaken(lesson.model, lesson.name)
    prompt = lesson.drawn([3])[0]
    rows, rewards = lesson.drawn_group(3, prompt)
    again, same = lesson.drawn_group(3, prompt)
    assert rows == again and torch.equal(rewards, same)
    assert len({row.tokens for row in rows}) > 1, "each answer has a seed of its own"
    other, _ = lesson.drawn_group(8, prompt)
    assert {row.tokens for row in rows} != {row.tokens for row in other}
    seed = lesson.draws.generator(3, "answer 2").initial_seed()
    alone = say(lesson.base, [prompt.text], chat=True, max_new_tokens=6, temperature=1.0, seed=seed)[0]
    assert rows[2].tokens == prompt.tokens + alone.tokens and float(rewards[2]) == pytest.approx(
        letters("", alone.text, None)
    )


def test_the_gradient_is_that_of_reinforce_with_the_groups_advantages(task):
    """With answers drawn by the very weights that learn, the loss has the gradient of −A log π, and of β KL."""
    lesson = opened(task)
    shaken(lesson.model, lesson.name)
    lesson.beta = 0.0
    lesson.loss([0, 1]).total.backward()
    found = {name: p.grad.clone() for name, p in lesson.model.named_parameters() if p.grad is not None}
    lesson.model.zero_grad()
    total = 0.0
    for n, prompt in zip([0, 1], lesson.drawn([0, 1]), strict=True):
        rows, rewards = lesson.drawn_group(n, prompt)
        for row, advantage in zip(rows, advantages(rewards[None])[0].tolist(), strict=True):
            chances = lesson.model(input_ids=torch.tensor([row.tokens])).logits[0].log_softmax(-1)
            said = range(len(prompt.tokens), len(row.tokens))
            total = total - advantage * sum(chances[place - 1, row.tokens[place]] for place in said) / len(said) / 8
    total.backward()
    assert found
    for name, parameter in lesson.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_what_is_rewarded_is_learned(task, tmp_path):
    more = {"steps": 25, "checkpoint_every": 0, "batch_size": 4, "learning_rate": 3e-2}
    lora = LoRA(rank=4, targets="attention+mlp")
    run = train(replace(task, group=8), output=tmp_path / "run", **{**SETTINGS, **more, "adapter": lora})
    before, after = run.measures[0], run.measures[25]
    assert before["kl"] == 0.0 < after["kl"], "the model is its own reference before the first step"
    assert after["reward"] > before["reward"] + 0.2
    first, last = (json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()[::24])
    assert last["reward"] > first["reward"] + 0.1 and {"kl", "equal_rewards", "answer_tokens"} <= set(first)


def test_equal_rewards_teach_nothing_and_are_told(task):
    lesson = opened(GRPO(base=task.base, data=task.data, reward="regex:.*", group=3, max_new_tokens=3))
    found = lesson.loss([0, 1])
    assert float(found.parts["equal_rewards"]) == 1.0 and float(found.total.detach()) == pytest.approx(0.0, abs=1e-6)
    found.total.backward()
    moved = [p.grad.abs().max() for p in lesson.model.parameters() if p.grad is not None]
    assert moved and max(moved) == 0.0


def test_accumulation_is_the_larger_batch(task, tmp_path):
    plain = {**SETTINGS, "steps": 3}
    whole = train(task, output=tmp_path / "whole", **{**plain, "batch_size": 4})
    parts = train(task, output=tmp_path / "parts", **{**plain, "batch_size": 2, "accumulation": 2})
    assert whole.losses == pytest.approx(parts.losses, rel=1e-4, abs=1e-6)


def test_a_killed_run_goes_on_bit_for_bit(task, tmp_path):
    settings = {**SETTINGS, "steps": 4, "adapter": LoRA(rank=2, dropout=0.2)}
    whole = train(task, output=tmp_path / "whole", **settings)
    with interrupted(GRPOLesson, 3):
        train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses and resumed.measures == whole.measures


def test_a_reward_adapter_on_the_same_base_judges(task, tmp_path):
    """Its rewards are those that ``studio complete`` would tell."""
    from studio.pipelines.text import TextPipeline

    pairs = [
        {"prompt": entry["prompt"], "chosen": entry["answer"], "rejected": "I am not sure."} for entry in asked(FACTS)
    ]
    judge = train(
        Reward(base=task.base, data=write(tmp_path / "pairs.jsonl", pairs)), output=tmp_path / "judge",
        **{**SETTINGS, "steps": 4},
    )  # fmt: skip
    judged = GRPO(base=task.base, data=task.data, reward=judge.folder, group=3, max_new_tokens=4)
    lesson = opened(judged)
    rows, rewards = lesson.drawn_group(0, lesson.drawn([0])[0])
    prompt = lesson.drawn([0])[0]
    texts = [lesson.base.tokenizer.decode(row.tokens[len(prompt.tokens) :], skip_special_tokens=True) for row in rows]
    pipe = TextPipeline.open(task.base, kind="classifier", labels=("reward",))
    pipe.load(judge.adapter)
    for text, reward in zip(texts, rewards.tolist(), strict=True):
        if text.strip():
            told = pipe.classify([(prompt.sample.asked, text.strip())])[0].scores["reward"]
            assert reward == pytest.approx(told, abs=1e-5)
    assert "reward" in lesson.inputs


def test_an_adapter_of_another_task_is_no_judge(task, tmp_path):
    from studio.trainers import CausalLM

    with pytest.raises(DoesNotFit, match="data.safetensors is no reward adapter .its task is causal-lm."):
        answers = [{"prompt": "a", "completion": " b"}]
        plain = train(
            CausalLM(base=task.base, data=write(tmp_path / "texts.jsonl", answers)), output=tmp_path / "plain",
            **{**SETTINGS, "steps": 2},
        )  # fmt: skip
        plain.adapter.rename(tmp_path / "data.safetensors")
        opened(GRPO(base=task.base, data=task.data, reward=tmp_path / "data.safetensors"))


# -- rewards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "completion", "wanted"),
    [
        ("exact", " Lima", 1.0),
        ("exact", "Lima.", 0.0),
        ("length:4", "one two three four", 1.0),
        ("length:4", "one two", 0.5),
        ("length:2", "one two three four", 0.5),
        ("regex:^L.m", "Lima", 1.0),
        ("regex:^L.m", "lima", 0.0),
        (f"{__name__}:letters", "ABcd", 0.5),
    ],
)
def test_rewards_by_name(reward, completion, wanted):
    name, function = function_of(reward)
    assert name == reward and function("Capital of Peru?", completion, "Lima") == wanted


def test_every_reward_with_a_name_is_tried_above():
    assert set(REWARDS) == {"exact", "length", "regex"}


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("exakt", "reward='exakt' is none; did you mean 'exact'"),
        ("exact:3", "reward='exact:3' is none"),
        ("length", "reward='length' is none; did you mean 'length:WORDS'"),
        pytest.param("length:" + "9" * 5000, f"reward='length:{'9' * 20}': give the number of words", id="digits"),
        pytest.param("a" * 300, "is none; did you mean 'exact'?", id="longer than a name of a file"),
        ("", "reward='' is none; did you mean 'exact'?"),
        ("length:few", "reward='length:few': give the number of words"),
        ("regex:(", "is no regular expression: missing \\), unterminated subpattern"),
        ("nomodule_here:f", "the module 'nomodule_here' cannot be imported"),
        ("json:lods", "the module 'json' has no function 'lods'"),
    ],
)
def test_rewards_that_are_none_are_refused(reward, message):
    with pytest.raises(BadConfig, match=message):
        check_reward(reward)
        function_of(reward)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "good"])
def test_a_reward_that_is_no_finite_number_is_refused_by_name(value):
    scores = each("mine", lambda prompt, completion, answer: value)
    wanted = rf'^the reward mine gives {value!r} for "Lima" \(line 3, "Capital\?"\): a reward is a finite number$'
    with pytest.raises(BadConfig, match=wanted):
        scores(Prompt(3, text="Capital?"), ["Lima"])


# -- prompts -----------------------------------------------------------------------------------------------------------


def prompt(**fields):
    return prompt_of(Record(3, "x.jsonl, line 3", fields))[0]


def test_the_forms_of_a_prompt():
    user = {"role": "user", "content": "Capital?"}
    wanted = Prompt(3, (("user", "Capital?"),), answer="Lima")
    assert prompt(messages=[user], answer="Lima") == wanted
    assert prompt(messages=[user, {"role": "assistant", "content": "Lima"}]) == wanted
    assert prompt(instruction="Capital?", output="Lima") == wanted
    assert prompt(instruction="Name it", input="Peru").turns == (("user", "Name it\n\nPeru"),)
    assert prompt(prompt="Capital?") == Prompt(3, text="Capital?")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"promt": "a"}, "a sample has prompt, messages or instruction, .*; did you mean 'prompt' by 'promt'"),
        ({"prompt": "a", "messages": []}, "it has 'prompt' and 'messages'; which one is meant"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": []}, "a prompt is a text or a list of turns"),
        ({"prompt": "a", "answer": ""}, "answer is empty"),
        ({"prompt": "a", "answer": 3}, "answer must be a text, not 3"),
    ],
)
def test_prompts_that_ask_nothing_are_refused(fields, message):
    with pytest.raises(BadFile, match=f"^x.jsonl, line 3: .*{message}"):
        prompt(**fields)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"group": 1}, BadConfig, "group=1: group must be at least 2"),
        ({"clip_ratio": 1.0}, BadConfig, "clip_ratio=1.0: clip_ratio must be between 0 and 1"),
        ({"temperature": 0.0}, BadConfig, "temperature=0.0: temperature must be above 0"),
        ({"beta": -1.0}, BadConfig, "beta=-1.0: beta must be 0 or more"),
        ({"reward": "exakt"}, BadConfig, "did you mean 'exact'"),
        (
            {"max_new_tokens": 95},
            BadFile,
            "line 1: the prompt has [0-9]+ tokens, and with 95 of an answer that is more",
        ),
    ],
)
def test_bad_requests_are_refused(task, change, error, message):
    with pytest.raises(error, match=message):
        GRPO(**{"base": task.base, "data": task.data, **change}).open(LoRA(rank=2), Plan(), print)


def test_a_reward_that_compares_needs_answers(tiny_language, tmp_path):
    data = write(tmp_path / "data.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c"}])
    with pytest.raises(
        BadFile, match="^line 2: the reward 'exact' compares with the right answer, and the prompt has none"
    ):
        GRPO(base=tiny_language, data=data).open(LoRA(rank=2), Plan(), print)


def test_a_divided_base_is_refused(task):
    with pytest.raises(
        DoesNotFit, match="^sharding='full' divides the base, and every process draws answers of its own"
    ):
        task.open(LoRA(rank=2), Plan(sharding="full"), print)
