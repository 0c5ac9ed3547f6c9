"""Vision-language models through the one loop: loss, measures, what is adapted, resuming, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image

from studio.adapters import LoRA
from studio.cli import main
from studio.errors import BadFile, DoesNotFit
from studio.families.language import open_language_base
from studio.families.language.seeing import asked, joined, looked_at
from studio.files import inspect
from studio.pipelines import TextPipeline
from studio.trainers import Caption, train
from studio.trainers.language.caption import CaptionLesson
from studio.trainers.loop.plan import Plan
from tiny import interrupted

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "black": (10, 10, 10)}
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<end>{% endfor %}[bot]"
)


def write_pictures(folder, shift=0):
    folder.mkdir()
    for name, colour in COLOURS.items():
        for take in range(2):
            shade = tuple(min(max(part + shift + 5 * take, 0), 255) for part in colour)
            Image.new("RGB", (20, 16), shade).save(folder / f"{name}{take}.png")
            (folder / f"{name}{take}.txt").write_text(name)
    return folder


@pytest.fixture
def task(tiny_vision, tmp_path):
    return Caption(base=tiny_vision, data=write_pictures(tmp_path / "pictures"),
                   held_out=write_pictures(tmp_path / "held-out", -8))  # fmt: skip


@pytest.fixture
def settings():
    return {"steps": 4, "batch_size": 2, "quiet": True, "checkpoint_every": 2, "adapter": LoRA(rank=2)}


def opened(task, **plan):
    return task.open(LoRA(rank=2), Plan(**{"batch_size": 2, **plan}), lambda line: None)


def by_hand(base, row):
    """Σ −log p of every token of a caption and its end, in fp64, one picture at a time, so nothing is padded."""
    tokenizer, model = base.tokenizer, base.model.double()
    question = base.processor(text=["<image>\n"], images=[row.sample.picture()], return_tensors="pt")
    said = torch.tensor([tokenizer(row.sample.text)["input_ids"] + [tokenizer.eos_token_id]])
    tokens = torch.cat([question["input_ids"], said], 1)
    with torch.no_grad():
        logits = model(input_ids=tokens, pixel_values=question["pixel_values"].double()).logits[0]
    base.model.float()
    return float(F.cross_entropy(logits[-said.shape[1] - 1 : -1], said[0], reduction="sum"))


def test_the_loss_is_the_sum_over_captions_by_their_mean_length(task):
    lesson = opened(task)
    rows = lesson.drawn([0, 1, 2])
    mean = sum(len(row.sample.text) + 1 for row in lesson.samples) / len(lesson.samples)
    wanted = sum(by_hand(lesson.base, row) for row in rows) / (3 * mean)
    assert len({row.size for row in rows}) > 1, "captions of different lengths"
    assert float(lesson.loss([0, 1, 2]).total.detach()) == pytest.approx(wanted, rel=1e-5)
    found = lesson.measure()["held_out_loss"]
    tokens = sum(len(row.sample.text) + 1 for row in lesson.held_out)
    assert found == pytest.approx(sum(by_hand(lesson.base, row) for row in lesson.held_out) / tokens, rel=1e-5)


def test_accumulation_is_the_larger_batch(task, settings, tmp_path):
    whole = train(task, output=tmp_path / "whole", **{**settings, "steps": 3, "batch_size": 4})
    parts = train(task, output=tmp_path / "parts", **{**settings, "steps": 3, "accumulation": 2})
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)


def test_a_killed_run_goes_on_bit_for_bit(task, settings, tmp_path):
    settings["adapter"] = LoRA(rank=2, dropout=0.2)
    whole = train(task, output=tmp_path / "whole", **settings)
    with interrupted(CaptionLesson, 3):
        train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses and resumed.measures == whole.measures


def test_it_learns_the_names_of_colours_and_the_command_says_them(task, tmp_path):
    run = train(task, output=tmp_path / "run", adapter=LoRA(rank=4, targets="attention+mlp"), steps=60, batch_size=8,
                learning_rate=2e-2, quiet=True)  # fmt: skip
    assert run.measures[0]["exact_match"] == 0 and run.measures[60]["exact_match"] == 1
    files = [str(tmp_path / "held-out" / f"{name}0.png") for name in COLOURS]
    pipe = TextPipeline.open(task.base)
    pipe.load(run.adapter, name="colours")
    assert [one.text for one in pipe.caption(files)] == list(COLOURS)
    with Image.open(files[2]) as picture:
        mixed = pipe.caption([picture, files[2]], blend=[{"colours": 1.0}, {"colours": 0.0}])
    assert mixed[0].text == "blue" != mixed[1].text and (mixed[0].file, mixed[1].file) == ("", files[2])
    words = ["complete", str(task.base), files[2], "--adapter", str(run.adapter), "--json"]
    made = CliRunner().invoke(main, words, prog_name="studio")
    wanted = {"file": files[2], "text": "blue", "tokens": 5, "ended": True}
    assert json.loads(made.stdout)["descriptions"] == [wanted]


@pytest.mark.parametrize("vision", [False, True])
def test_the_vision_tower_is_adapted_where_it_is_asked_for(task, settings, tmp_path, vision):
    own = Caption(base=task.base, data=task.data, vision=vision)
    run = train(own, output=tmp_path / "run", **{**settings, "adapter": LoRA(rank=2, targets="all-linear"), "steps": 2})
    sites = inspect(run.adapter).sites
    assert any("vision_tower" in site for site in sites) is vision
    assert any("multi_modal_projector" in site for site in sites) is vision
    assert any("language_model" in site for site in sites)
    again = train(own, output=tmp_path / "again", **{**settings, "adapter": run.adapter, "steps": 1})
    assert inspect(again.adapter).sites == sites


def test_questions_are_asked_as_the_template_writes_them(tiny_vision):
    base = open_language_base(tiny_vision)
    assert asked(base, (("user", ""),)) == "<image>\n" and asked(base, (("user", "Who?"),)) == "<image>\nWho?\n"
    base.processor.chat_template = TEMPLATE
    turns = (("system", "Be brief."), ("user", "Who?"), ("assistant", "Me."), ("user", "Why?"))
    assert asked(base, turns) == "[system]Be brief.<end>[user]<image>Who?<end>[assistant]Me.<end>[user]Why?<end>[bot]"
    with pytest.raises(DoesNotFit) as caught:
        asked(base, (("user", "an <image>"),))
    assert str(caught.value) == "a turn holds '<image>', which stands for the picture; take it out"
    base.processor.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(DoesNotFit) as caught:
        asked(base, turns)
    assert str(caught.value) == (
        "the chat template of tiny-vision writes no '<image>' for a picture: its questions show none"
    )


def test_a_batch_is_filled_up_on_either_side(tiny_vision):
    base = open_language_base(tiny_vision)
    picture = Image.new("RGB", (16, 16))
    seen = [looked_at(base, picture, asked(base, (("user", text),))) for text in ("", "Who?")]
    right = joined(base, seen, [(1, 2), ()], left=False)
    left = joined(base, seen, [(), ()], left=True)
    assert right["attention_mask"].tolist() == [[1] * 7 + [0] * 3, [1] * 10]
    assert left["attention_mask"].tolist() == [[0] * 5 + [1] * 5, [1] * 10]
    assert right["input_ids"][0, 5:7].tolist() == [1, 2] and int(left["input_ids"][0, 0]) == base.pad
    assert right["pixel_values"].shape == (2, 3, 16, 16)


def pictures_alone():
    """Qwen2-VL's processor without videos, whose part of it needs torchvision."""
    from transformers import ProcessorMixin, Qwen2VLProcessor

    class Pictures(ProcessorMixin):
        return_mm_token_type_ids = True
        replace_image_token = Qwen2VLProcessor.replace_image_token
        model_input_names = Qwen2VLProcessor.model_input_names

        def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
                [self.image_token, self.video_token]
            )
            super().__init__(image_processor, tokenizer, chat_template=chat_template)

    return Pictures


QWEN_TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}{{ '<|vision_start|><|image_pad|><|vision_end|>' if "
    "part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %}\n"
)
QWEN = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>")


def test_a_model_of_another_architecture_learns_too(tiny_vision, tmp_path):
    """Qwen2-VL: patches of all pictures in one row, a grid of each, and kinds of tokens beside the tokens."""
    from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(tiny_vision)
    tokenizer.add_special_tokens({"extra_special_tokens": list(QWEN)})
    known = tokenizer.convert_tokens_to_ids
    processor = pictures_alone()(Qwen2VLImageProcessorPil(patch_size=4, min_pixels=64), tokenizer, QWEN_TEMPLATE)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config=dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
                             rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
                             bos_token_id=None, eos_token_id=tokenizer.eos_token_id, initializer_range=0.2),
            vision_config=dict(depth=1, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=4),
            image_token_id=known("<|image_pad|>"), video_token_id=known("<|video_pad|>"),
            vision_start_token_id=known("<|vision_start|>"), vision_end_token_id=known("<|vision_end|>"),
        )
    ).eval()  # fmt: skip
    base = open_language_base((model, processor))
    assert base.kind.name == "vision"
    data, kept = write_pictures(tmp_path / "pictures"), write_pictures(tmp_path / "kept", -8)
    task = Caption(base=base, data=data, held_out=kept)
    run = train(task, output=tmp_path / "run", adapter=LoRA(rank=4, targets="attention+mlp"), steps=30, batch_size=8,
                learning_rate=1e-2, quiet=True)  # fmt: skip
    assert run.measures[30]["held_out_loss"] < run.measures[0]["held_out_loss"] / 2
    assert all(".visual." not in site for site in inspect(run.adapter).sites)
    rows = opened(task).samples
    alone = [by_row(base, [row]) for row in rows[:3]]
    assert by_row(base, rows[:3]) == pytest.approx(sum(alone), rel=1e-4), "a picture knows nothing of its neighbours"


def by_row(base, rows):
    from studio.trainers.language.caption import caption_loss

    with torch.no_grad():
        return float(caption_loss(base, rows)[0])


def test_what_cannot_be_seen_is_refused(tiny_vision, tiny_language, tmp_path):
    data = write_pictures(tmp_path / "pictures")
    with pytest.raises(DoesNotFit, match="which transformers has no vision-language model of"):
        opened(Caption(base=tiny_language, data=data))
    with pytest.raises(DoesNotFit, match="is a causal language model, which sees nothing"):
        TextPipeline.open(tiny_language).caption(data / "red0.png")
    pipe = TextPipeline.open(tiny_vision)
    with pytest.raises(DoesNotFit, match=r"is a vision-language model: ask it with pictures \(caption\)"):
        pipe.complete("Hi")
    with pytest.raises(DoesNotFit) as caught:
        pipe.caption(data / "red0.png", "x" * 80)
    assert str(caught.value) == (
        "a picture and its question have 86 tokens and tiny-vision reads 64: nothing can be said behind them; ask for "
        "less"
    )
    with pytest.raises(BadFile) as short:
        opened(Caption(base=tiny_vision, data=data, max_length=5))
    assert str(short.value) == "no sample of pictures has a part of its answer within 5 tokens: raise max_length"
