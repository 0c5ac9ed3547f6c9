"""Forecasts of every task on language bases, against lessons on real samples, opened and stepped with real tensors."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

import studio
from reals import Reals
from studio.errors import DoesNotFit, UsageError
from studio.families.language import LANGUAGE_BASES, sample_file
from studio.planning.fakes import Fakes
from studio.planning.tracker import Tracker
from studio.trainers import TEXT_TASKS, Plan
from studio.trainers.forecast import Asked, fit, plan
from studio.trainers.forecast.before import asked_of, forecast_of
from studio.trainers.forecast.language import language_scene
from studio.trainers.forecast.plan import usual_task
from studio.trainers.forecast.stage import Scene, play, reference_of
from studio.trainers.forecast.still import Still
from studio.trainers.language.rehearsals import REHEARSALS, USUAL_TASKS
from studio.trainers.recipes import RECIPES
from studio.trainers.text_task import TextTask
from tiny import language

LORA = studio.LoRA(rank=4, targets="attention")
SAID = " ".join(f"{number} of them are red," for number in range(8))


def lines(file, most):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:most]]


def named(base, field, most=8):
    """Pictures or sounds that come with an embedded base, and what belongs to them."""
    folder = LANGUAGE_BASES[base].parent / "train"
    found = lines(folder / "metadata.jsonl", most)
    return [{field: str(folder / one["file_name"]), "text": one["text"]} for one in found]


def answers(name):
    return [{"prompt": "a", **one} for one in {
        "pairs": [{"chosen": SAID, "rejected": f"{SAID} not"}, {"chosen": f"{SAID} not", "rejected": SAID}],
        "verdicts": [{"completion": SAID, "label": True}, {"completion": f"{SAID} not", "label": False}],
    }[name]]  # fmt: skip


# name -> (task, base, samples, settings); what is told of a prompt is short, for all of a sample is taken to be learned
CASES: dict[str, tuple[str, str, list[dict[str, Any]], dict[str, Any]]] = {
    "caption": ("caption", "figures", named("figures", "image"), {}),
    "caption, vision too": ("caption", "figures", named("figures", "image"), {"vision": True}),
    "causal-lm": ("causal-lm", "facts", [{"text": SAID}, {"text": f"{SAID} not"}], {}),
    "classify": ("classify", "facts", lines(sample_file("facts", "glosses.jsonl"), 12), {}),
    "classify, head as it is": (
        "classify", "encoder", [{"text": SAID[:40], "label": "a"}, {"text": SAID[:41], "label": "b"}],
        {"keep_head": True}),
    "code": ("code", "facts", [{"prefix": "a", "middle": 3 * SAID, "suffix": "b"},
                               {"prefix": "a", "middle": f"{3 * SAID} not", "suffix": "b"}],
             {"marks": ("^", "|", "$")}),
    "embed": ("embed", "facts", [{"anchor": f"{SAID} {n}", "positive": f"{SAID} {n} not"} for n in range(4)], {}),
    "embed, small groups": (
        "embed", "facts", [{"anchor": f"{SAID} {n}", "positive": f"{SAID} {n} not"} for n in range(4)],
        {"group": 2, "pooling": "last"}),
    "grpo": ("grpo", "language", [{"prompt": "of them"}, {"prompt": "of them are"}],
             {"reward": "length:1", "max_new_tokens": 12, "group": 4}),
    "preference": ("preference", "facts", answers("pairs"), {}),
    "preference, orpo": ("preference", "facts", answers("pairs"), {"loss": "orpo"}),
    "preference, kto": ("preference", "facts", answers("verdicts"), {"loss": "kto"}),
    "reward": ("reward", "facts", answers("pairs"), {}),
    "seq2seq": ("seq2seq", "words", lines(sample_file("words", "train.jsonl"), 8), {}),
    "speech": ("speech", "speech", named("speech", "audio"), {}),
}  # fmt: skip


@pytest.fixture
def task_of(tiny_language, tiny_encoder):
    def make(name):
        task, base, data, settings = CASES[name]
        folder = {"language": tiny_language, "encoder": tiny_encoder}.get(base, base)
        return TEXT_TASKS[task](base=folder, data=data, name="x", **settings)

    return make


def test_every_task_has_a_case():
    assert {task for task, *_ in CASES.values()} == set(TEXT_TASKS) == set(REHEARSALS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "checkpointing"]
)
def test_a_lesson_on_real_samples_holds_what_is_forecast(name, checkpointing, task_of):
    """Within 3 % in every phase, of samples as long as the two longest that there are.

    Nothing of the forecast's rows is shared with the lesson: its samples went through its task's own reading. Of
    answers that are drawn two passes stand for all, and of a tiny model they take so little that the rest counts.
    """
    task, chosen = task_of(name), Plan(batch_size=4, gradient_checkpointing=checkpointing)
    lesson = task.open(LORA, chosen, lambda line: None)
    longest = sorted(lesson.samples, key=lambda row: row.size)[-2:]
    lesson.samples, lesson.draws = longest * 16, Still(0)
    rehearsal = REHEARSALS[task.task_name]
    sizes = rehearsal.sizes(longest, {option: getattr(task, option) for option in rehearsal.options})
    found, tracker = forecast_of(task, LORA, lesson.plan, sizes), Tracker()
    asked = asked_of(task, LORA, lesson.plan, sizes=sizes)
    try:
        play(Scene(lesson, reference=reference_of(lesson)), asked, Reals(), tracker)
    finally:
        lesson.close()
    assert {phase.name for phase in found.phases} == set(tracker.peaks)
    for phase in found.phases:
        near = 0.05 if name == "grpo" else 0.03
        assert phase.total == pytest.approx(tracker.peaks[phase.name].total, rel=near), phase.name
    assert ("reference" in tracker.peaks) == (name in ("preference", "preference, kto"))


SETTINGS = {
    "eager, in bf16 products": {"attention": "eager", "precision": "bf16", "dtype": "fp32"},
    "accumulated, activations offloaded": {"accumulation": 2, "offload_activations": True, "dtype": "bf16"},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", REHEARSALS)
def test_every_phase_holds_what_real_tensors_hold(name, settings):
    """Within 3 %, and each category of each phase within 3 % of the phase."""
    base = {"seq2seq": "words", "speech": "speech", "caption": "figures"}.get(name, "facts")
    asked = Asked(task=name, batch_size=2, length=40, adapter=LORA, **SETTINGS[settings])
    trackers = []
    for stuff in (Fakes(), Reals()):
        torch.manual_seed(0)
        trackers.append(Tracker())
        play(language_scene(drawn_for(base, name), asked), asked, stuff, trackers[-1])
    without, real = trackers
    assert set(without.peaks) == set(real.peaks)
    for phase, truth in real.peaks.items():
        found = without.peaks[phase]
        assert found.total == pytest.approx(truth.total, rel=0.03), phase
        for category in {*found.by, *truth.by}:
            assert abs(found.by.get(category, 0) - truth.by.get(category, 0)) <= 0.03 * truth.total, (phase, category)
    assert without.flops == real.flops


def drawn_for(base, task):
    from studio.planning.blueprint import blueprint

    return blueprint(base, REHEARSALS[task].kind, REHEARSALS[task].labels)


@pytest.mark.parametrize("name", REHEARSALS)
def test_what_a_rehearsal_takes_for_usual_is_the_tasks_own(name):
    """Options, kind and recipe stand in the task; a forecast by name has the same."""
    task, rehearsal = TEXT_TASKS[name], REHEARSALS[name]
    own = {field.name: field.default for field in dataclasses.fields(task)}
    assert rehearsal.options == {option: own[option] for option in rehearsal.options}
    assert rehearsal.kind == task.kind
    assert {(name, "small"), (name, "large")} <= set(RECIPES)


QUICK = ("embed", "grpo", "reward")
"""Of the tasks whose forecasts are all made in one way, those that every run of the tests opens."""


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in REHEARSALS
])  # fmt: skip
def test_fit_keeps_what_does_not_fit_from_being_opened(name, task_of):
    """The limit is looked at before the data is; what fits is opened, and is forecast again by its real samples."""
    task, small = task_of(name), Plan(batch_size=1, gradient_checkpointing=True, fit="100kB")
    with pytest.raises(DoesNotFit, match=r"nothing reaches 100\.0 kB"):
        dataclasses.replace(task, data="no/such/file", max_length=24).open(LORA, small, lambda line: None)
    said: list[str] = []
    lesson = task.open(LORA, Plan(batch_size=1, fit="64GB"), said.append)
    assert any(line.startswith("forecast: ") and line.endswith(" at the peak, of 64GB") for line in said)
    made = lesson.foresee()
    assert made.settings["task"] == task.task_name and 0 < made.peak < 64e9
    lesson.close()


def test_what_kind_a_base_is_says_its_task(tiny_encoder):
    assert {base: usual_task(base) for base in LANGUAGE_BASES} == {
        "facts": "causal-lm", "figures": "caption", "speech": "speech", "words": "seq2seq"}  # fmt: skip
    assert usual_task(tiny_encoder) == "embed"
    assert set(USUAL_TASKS.values()) <= set(TEXT_TASKS)


@pytest.mark.parametrize("kind", ["t5", "bart", "bert", "roberta", "gpt2", "opt"])
def test_classifiers_of_other_makes_are_forecast(kind, tmp_path):
    """Their heads look for the end of a text, and for what fills it up."""
    model = language(kind)
    model.config.eos_token_id = 2  # without which those of two parts find no end
    model.save_pretrained(tmp_path)
    assert plan(tmp_path, task="classify", length=8, batch_size=2).trained > 0


@pytest.mark.slow
def test_large_public_models_are_planned_as_what_a_task_opens():
    """A T5 that counts the ends of its texts; and an answer of a Llama that is drawn behind virtual tokens."""
    assert plan("t0-3b", task="classify", batch_size=2, length=16).weights == pytest.approx(2.82e9, rel=0.02)
    assert plan("facts", task="grpo", batch_size=1, length=40, adapter=studio.PromptTuning(tokens=4)).trained == 4 * 192


class Untold(TextTask):
    """A task that has nothing to say of itself for a forecast."""

    task_name = "untold"
    kind = "causal-lm"
    form = encode = lesson = example = call = None


def test_a_task_without_a_rehearsal_is_refused_by_name():
    with pytest.raises(DoesNotFit, match=r"^no forecast is made of the task untold, so fit='1GB' cannot be kept"):
        Untold(base="facts", data=[{"text": "a"}]).open(LORA, Plan(fit="1GB"), lambda line: None)


def test_a_reward_that_is_a_model_is_refused_by_name(tmp_path):
    task = TEXT_TASKS["grpo"](base="facts", data=[{"prompt": "a"}], reward=str(tmp_path / "judge.safetensors"))
    with pytest.raises(DoesNotFit, match=r"^no forecast is made of a reward that is a model itself .* so fit='1GB'"):
        task.open(LORA, Plan(fit="1GB"), lambda line: None)


@pytest.mark.parametrize(("base", "settings", "words"), [
    ("facts", {"task": "speech"}, "has no speech recogniser of"),
    ("words", {"task": "embed"}, "is a model of two parts"),
    ("facts", {"task": "dreambooth"}, "is a language base, .* a forecast is made of caption"),
    ("facts", {"task": "grpo", "length": 32}, "answers have 32 tokens .* a prompt stands before them"),
    ("figures", {"task": "caption", "length": 10}, "reads a picture as 17 tokens"),
    ("facts", {"task": "embed", "own": {"loss": "dpo"}}, "loss decides nothing of what the task embed takes"),
    ("facts", {"task": "embed", "own": {"group": 0}}, "group=0: give what the task embed takes, such as 16"),
    ("facts", {"task": "preference", "own": {"loss": "sft"}}, "loss='sft': give one of dpo, ipo, orpo, kto"),
    ("facts", {"task": "reward", "adapter": studio.PromptTuning(tokens=4)}, "reward trains a head too"),
    ("llama-3-8b", {"task": "caption"}, "has no vision-language model of"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(base, settings, words):
    with pytest.raises(UsageError, match=words):
        plan(base, **settings)


def test_a_group_of_answers_and_a_group_of_texts_count():
    """By what they multiply: G answers to a prompt, and the texts of all of a group beside a single anchor."""
    few, many = (plan("facts", task="grpo", batch_size=1, length=48, own={"group": g}).flops for g in (2, 8))
    assert many / few == pytest.approx(8 / 2, rel=0.01)
    one, group = (plan("facts", task="embed", batch_size=1, own={"group": g}).flops for g in (2, 16))
    assert group / one == pytest.approx((1 + 16) / (1 + 2), rel=0.01)


@pytest.mark.slow
def test_shorter_samples_stop_at_the_least():
    """A picture's tokens are not made fewer, nor an answer that is drawn."""
    for base, task in (("figures", "caption"), ("facts", "grpo")):
        done = fit(base, Asked(task=task, batch_size=1), "1kB")
        assert done.least.forecast.sizes["length"] >= done.forecast.sizes["least"]


MEASURED = ("causal-lm", "preference", "reward")
MORE = ("caption", "classify", "preference, kto", "speech")


@pytest.mark.parametrize("name", [*MEASURED, *(pytest.param(one, marks=pytest.mark.slow) for one in MORE)])
def test_measuring_takes_no_more_than_a_step(name, task_of):
    """However many samples are held out: they are computed a step's at a time."""
    task = task_of(name)
    unsaid = {"answers": 0} if "answers" in {field.name for field in dataclasses.fields(task)} else {}
    task = dataclasses.replace(task, held_out=task.data, **unsaid)
    lesson = task.open(LORA, Plan(batch_size=2), lambda line: None)
    lesson.held_out = sorted(lesson.held_out, key=lambda row: row.size)[-2:] * 16
    tracker = Tracker()
    try:
        play(Scene(lesson, reference=reference_of(lesson)), Asked(task=task.task_name, batch_size=2), Reals(), tracker)
        step = max(peak.total for phase, peak in tracker.peaks.items() if phase != "reference")
        with tracker, tracker.phase("measured", "temporaries"):
            lesson.measure()
        assert tracker.peaks["measured"].total <= step
    finally:
        lesson.close()
