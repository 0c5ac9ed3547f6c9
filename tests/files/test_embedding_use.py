"""Learned words on pipelines: read as diffusers reads them, in every prompt form, and taken off without a trace."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

import studio
import tiny_pipelines
from studio.cli import main
from studio.errors import BadConfig, DoesNotFit, PartialLoad, Refused, UnknownName
from studio.families import open_base
from studio.families.vocabulary import readers
from studio.families.words import Words
from studio.pipelines import ImagePipeline, read_metadata, regenerate, render, save_png
from studio.pipelines.encoding import encoded

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
FILES = {
    "sd1": {"emb_params": "text_encoder"},
    "sd2": {"emb_params": "text_encoder"},
    "sdxl": {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    "sd3": {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"},
    "flux1": {"clip_l": "text_encoder", "t5": "text_encoder_2"},
    "chroma": {"emb_params": "text_encoder"},
    "pixart-sigma": {"t5xxl": "text_encoder"},
    "qwen-image": {"<cat>": "text_encoder"},
    "lumina2": {"emb_params": "text_encoder"},
}
"""Family -> key of a file -> the encoder that it is for."""


def rows(pipe, component: str, count: int = 3, seed: int = 0) -> torch.Tensor:
    reader = next(one for one in readers(pipe) if one.row.component == component)
    return torch.randn(count, reader.width, generator=torch.Generator().manual_seed(seed))


def file_for(pipe, family: str, place, name: str = "toy", count: int = 3):
    tensors = {key: rows(pipe, component, count, seed) for seed, (key, component) in enumerate(FILES[family].items())}
    save_file(tensors, place / f"{name}.safetensors")
    return place / f"{name}.safetensors"


@torch.no_grad()
def encode(pipe, prompt):
    base = open_base(pipe)
    return base.family.encode_text(pipe, [prompt], False)


def same(one, other) -> bool:
    first, second = one.tensors(), other.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def rules(tokenizer):
    """Everything that its rules say, but how much the last call asked for."""
    return {
        name: one
        for name, one in json.loads(tokenizer._tokenizer.to_str()).items()
        if name not in ("truncation", "padding")
    }


def standing(pipe):
    """What must be as before: tokenizers, their rules and sizes, and every tensor, hook and class of the encoders."""
    return [
        (
            reader.tokenizer, reader.tokenizer._tokenizer, rules(reader.tokenizer), len(reader.tokenizer),
            [(path, type(part), sorted(vars(part)), *(len(getattr(part, table)) for table in HOOKS))
             for path, part in reader.module.named_modules()],
            [(name, id(one), one._version) for name, one in reader.module.named_parameters(remove_duplicate=False)],
        )
        for reader in readers(pipe)
    ]  # fmt: skip


# -- as diffusers reads them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_word_is_encoded_as_diffusers_encodes_it(tmp_path, count):
    """Their ``load_textual_inversion`` on an equal pipeline: prompt embeddings to 1e-5 (they are equal to the bit)."""
    ours, theirs = tiny_pipelines.build("sd1"), tiny_pipelines.build("sd1")
    save_file({"<toy>": rows(ours, "text_encoder", count)}, tmp_path / "learned_embeds.safetensors")
    theirs.load_textual_inversion(str(tmp_path / "learned_embeds.safetensors"))
    report = studio.load(ours, tmp_path / "learned_embeds.safetensors")
    assert report.method == "textual inversion" and report.applied == ("<toy>",) and not report.ignored
    for prompt in ("a photo of <toy> dog", "<toy>", "a <toy>, and <toy> again"):
        with torch.no_grad():
            wanted, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
        got = encode(ours, prompt).tokens
        assert (got - wanted).abs().max() <= 1e-5
    assert not torch.equal(encode(ours, "a <toy>").tokens, encode(ours, "a photo").tokens)


def test_two_encoders_as_diffusers_has_them(tmp_path):
    """SDXL, where diffusers wants the file split by hand: states of both encoders and the pooled vector."""
    ours, theirs = tiny_pipelines.build("sdxl"), tiny_pipelines.build("sdxl")
    first, second = rows(ours, "text_encoder"), rows(ours, "text_encoder_2", seed=1)
    save_file({"clip_l": first, "clip_g": second}, tmp_path / "toy.safetensors")
    theirs.load_textual_inversion(first, token="toy", text_encoder=theirs.text_encoder, tokenizer=theirs.tokenizer)
    theirs.load_textual_inversion(second, token="toy", text_encoder=theirs.text_encoder_2, tokenizer=theirs.tokenizer_2)
    studio.load(ours, tmp_path / "toy.safetensors")
    with torch.no_grad():
        tokens, _, pooled, _ = theirs.encode_prompt(
            "a photo of toy dog", device="cpu", do_classifier_free_guidance=False
        )
    got = encode(ours, "a photo of toy dog")
    assert (got.tokens - tokens).abs().max() <= 1e-5 and (got.pooled - pooled).abs().max() <= 1e-5


def test_the_pooled_vector_is_that_of_the_end_where_clip_takes_the_largest_token(tmp_path):
    """CLIP configs before 2023 pool at the largest token, which a new one would be; A1111 pools at the end."""
    pipe = tiny_pipelines.build("sdxl")
    file = file_for(pipe, "sdxl", tmp_path)
    studio.load(pipe, file)
    right = encode(pipe, "a toy dog").pooled
    for part in (pipe.text_encoder_2, pipe.text_encoder_2.text_model):
        part.config.eos_token_id = 2
        vars(part)["eos_token_id"] = 2
    assert torch.equal(encode(pipe, "a toy dog").pooled, right)


# -- every family, every form of a prompt ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FILES)
def test_every_family_reads_words_in_every_form_and_is_given_back(tmp_path, family):
    pipe = tiny_pipelines.build(family)
    plain = encode(pipe, "a photo of toy dog")  # after which transformers has hooks of its own
    before = standing(pipe)
    token = "<cat>" if "<cat>" in FILES[family] else "toy"
    report = studio.load(pipe, file_for(pipe, family, tmp_path))
    assert sorted(report.applied) == sorted(FILES[family]) and report.embeddings == ("toy",)
    assert studio.embeddings(pipe) == {"toy": (token, "embedding:toy")}
    with_word = encode(pipe, f"a photo of {token} dog")
    assert not same(with_word, plain)
    for spelling in (token.upper(), "embedding:toy", "embedding:toy.safetensors", "Embedding:Toy"):
        assert same(encode(pipe, f"a photo of {spelling} dog"), with_word), spelling
    for other in ("a photo of toys dog", "a photo of a_toy dog") if token == "toy" else ():
        unlike = encode(pipe, other)
        studio.remove_embedding(pipe, "toy")
        assert same(encode(pipe, other), unlike), "a part of a longer word is none"
        studio.load(pipe, tmp_path / "toy.safetensors")
    if open_base(pipe).family.emphasis:
        weighed = Words(((("a photo of ", 1.0), (token, 1.5), (" dog", 1.0)),))
        assert not same(encode(pipe, weighed), with_word)
    studio.remove_embedding(pipe, "toy")
    assert standing(pipe) == before and studio.embeddings(pipe) == {}
    assert same(encode(pipe, "a photo of toy dog"), plain)


def test_emphasis_counts_every_vector_of_a_word(tmp_path):
    """``z' = w z mean(z) / mean(z')`` in float64, with w on the tokens of the word: T5 in one piece, CLIP in chunks."""
    for family in ("sd1", "chroma"):
        pipe = tiny_pipelines.build(family)
        for path, part in pipe.text_encoder.named_modules():
            if path.endswith("final_layer_norm") and "bias" in dict(part.named_parameters()):
                torch.nn.init.ones_(part.bias)  # a random norm has no mean to keep
        studio.load(pipe, file_for(pipe, family, tmp_path))
        plain = encode(pipe, "a photo of toy dog").tokens
        base = open_base(pipe)
        text = pipe.tokenizer("a photo of toy dog").input_ids
        new = [place for place, token in enumerate(text) if token >= base.pipe.text_encoder.config.vocab_size]
        assert len(new) == 3
        weights = torch.ones(plain.shape[1], dtype=torch.float64)
        weights[new] = 1.5
        mask = encode(pipe, "a photo of toy dog").mask
        kept = torch.ones_like(weights) if mask is None else mask[0].double()
        changed = plain.double() * weights[:, None]
        ratio = (plain.double() * kept[:, None]).sum() / (changed * kept[:, None]).sum()
        wanted = torch.where(kept[:, None] != 0, changed * ratio, plain.double())
        got = encode(pipe, Words(((("a photo of ", 1.0), ("toy", 1.5), (" dog", 1.0)),))).tokens
        assert (got.double() - wanted).abs().max() <= 1e-5 * wanted.abs().max(), family


def test_a_word_is_not_torn_between_chunks(tmp_path):
    pipe = tiny_pipelines.build("sd1")
    studio.load(pipe, file_for(pipe, "sd1", tmp_path, count=5))
    from studio.families.parts.clip import in_chunks

    start = pipe.text_encoder.config.vocab_size
    for before in range(68, 78):
        ids = in_chunks(pipe.tokenizer, [Words(((("dog " * before + "toy cat", 1.0),),))]).ids[0]
        found = [[int(token) - start for token in chunk if token >= start] for chunk in ids]
        assert [0, 1, 2, 3, 4] in found and sum(map(len, found)) == 5, before
        assert (ids[0] == pipe.tokenizer.convert_tokens_to_ids("dog</w>")).sum() == min(before, 75)


def test_several_embeddings_and_one_taken_off(tmp_path):
    pipe = tiny_pipelines.build("sd1")
    before = standing(pipe)
    for name in ("toy", "toy two", "toybox"):
        studio.load(pipe, file_for(pipe, "sd1", tmp_path, name, count=len(name)))
    alone = encode(pipe, "a toybox")
    both = encode(pipe, "toy two and toybox")
    studio.remove_embedding(pipe, "toy")
    assert same(encode(pipe, "a toybox"), alone) and same(encode(pipe, "toy two and toybox"), both)
    with pytest.raises(UnknownName, match="did you mean 'toybox'"):
        studio.remove_embedding(pipe, "toyboxes")
    studio.remove_embedding(pipe, "toybox")
    studio.remove_embedding(pipe, "toy two")
    assert standing(pipe) == before


def test_a_lora_on_the_encoder_and_a_copy(tmp_path):
    """Words and adapters sit on one encoder, whichever came first; a deep copy has its own words."""
    pipe = tiny_pipelines.build("sd1")
    file = file_for(pipe, "sd1", tmp_path)
    targets = ("re:.*token_embedding", "re:.*q_proj")
    studio.attach(pipe.text_encoder, studio.LoRA(rank=2, targets=targets), name="x")
    with torch.no_grad():
        for one in studio.state(pipe.text_encoder, "x").values():
            one.add_(0.1)
    studio.load(pipe, file)
    first = encode(pipe, "a toy dog")
    copied = copy.deepcopy(pipe.text_encoder)
    assert copied is not pipe.text_encoder
    studio.remove_embedding(pipe, "toy")
    studio.load(pipe, file)
    assert same(encode(pipe, "a toy dog"), first)
    studio.detach(pipe.text_encoder)
    assert not same(encode(pipe, "a toy dog"), first)
    studio.remove_embedding(pipe, "toy")


def test_a_prompt_that_is_kept_is_forgotten_with_its_word(tmp_path):
    pipe = tiny_pipelines.build("sd1")
    base = open_base(pipe)
    with torch.no_grad():
        plain = encoded(base, ["a toy"], False)
        studio.load(pipe, file_for(pipe, "sd1", tmp_path))
        learned = encoded(base, ["a toy"], False)
        assert not same(plain, learned) and same(learned, encode(pipe, "a toy"))
        studio.remove_embedding(pipe, "toy")
        assert same(encoded(base, ["a toy"], False), plain)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensors, error, said",
    [
        ({"emb_params": (2, 768)}, DoesNotFit, "768, which is Stable Diffusion 1.x's, and this base reads 16: load"),
        ({"emb_params": (2, 1024)}, DoesNotFit, "load it on Stable Diffusion 2.x"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, DoesNotFit, "load it on Stable Diffusion XL"),
        ({"clip_l": (2, 16), "clip_g": (2, 24)}, PartialLoad, "'clip_g' is not applied: no encoder of this base"),
        ({"clip_l": (2, 16), "clip_l_out": (2, 16)}, PartialLoad, "'clip_l_out' is not applied: it is added behind"),
        ({"emb_params": (76, 16)}, DoesNotFit, "76 vectors is none .* 75 places"),
    ],
)  # fmt: skip
def test_files_for_another_base(tmp_path, tensors, error, said):
    pipe = tiny_pipelines.build("sd1")
    before = standing(pipe)
    save_file({key: torch.randn(*shape) for key, shape in tensors.items()}, tmp_path / "toy.safetensors")
    with pytest.raises(error, match=said):
        studio.load(pipe, tmp_path / "toy.safetensors")
    assert standing(pipe) == before
    if error is PartialLoad:
        report = studio.load(pipe, tmp_path / "toy.safetensors", allow_partial=True)
        assert set(report.applied) | set(report.ignored) == set(tensors) and report.ignored


def test_an_encoder_without_vectors_would_read_plain_text(tmp_path):
    pipe = tiny_pipelines.build("sdxl")
    save_file({"emb_params": torch.randn(2, 16)}, tmp_path / "toy.safetensors")
    with pytest.raises(PartialLoad, match="text_encoder_2 reads 'toy' as plain text"):
        studio.load(pipe, tmp_path / "toy.safetensors")
    report = studio.load(pipe, tmp_path / "toy.safetensors", allow_partial=True)
    assert report.applied == ("emb_params",) and "plain text" in report.notes[-1]


def test_what_words_do_not_have(tmp_path):
    pipe = tiny_pipelines.build("sd1")
    file = file_for(pipe, "sd1", tmp_path)
    for how in ({"strength": 0.5}, {"trainable": True}):
        with pytest.raises(BadConfig, match="learned words"):
            studio.load(pipe, file, **how)
    for model in (pipe.unet, pipe.text_encoder):
        with pytest.raises(DoesNotFit, match="load them on the pipeline"):
            studio.load(model, file)
    studio.load(pipe, file)
    with pytest.raises(DoesNotFit, match="is called 'toy' already"):
        studio.load(pipe, file)
    save_file({"toy": torch.randn(1, 16)}, tmp_path / "other.safetensors")
    with pytest.raises(DoesNotFit, match="'toy' is a word of the embedding 'toy' already"):
        studio.load(pipe, tmp_path / "other.safetensors")
    save_file({"emb_params": torch.full((1, 16), torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(Refused, match="NaN"):
        studio.load(pipe, tmp_path / "nan.safetensors")
    pipe.tokenizer.add_tokens(["<mine>"])
    with pytest.raises(DoesNotFit, match="other tokens since"):
        studio.remove_embedding(pipe, "toy")
    assert "toy" in studio.embeddings(pipe)
    save_file({"dog": torch.randn(1, 16)}, tmp_path / "dog.safetensors")
    with pytest.raises(DoesNotFit, match="other tokens since"):
        studio.load(pipe, tmp_path / "dog.safetensors")
    assert pipe.tokenizer.convert_tokens_to_ids("<mine>") == len(pipe.tokenizer) - 1  # theirs is still there


def test_two_encoders_with_one_tokenizer_are_refused(tmp_path):
    pipe = tiny_pipelines.build("sdxl")
    file = file_for(pipe, "sdxl", tmp_path)
    pipe.tokenizer_2 = pipe.tokenizer
    before = standing(pipe)
    with pytest.raises(DoesNotFit, match="shares its tokenizer"):
        studio.load(pipe, file)
    assert standing(pipe) == before


# -- brought along by an adapter ---------------------------------------------------------------------------------------


def bundle(pipe, place, name="foo", width=16, key="clip_l"):
    studio.attach(pipe, studio.LoRA(rank=2, targets=("re:.*attn2.to_q",)), name="style")
    with torch.no_grad():
        for one in studio.state(pipe, "style").values():
            one.add_(0.1)
    file = studio.save(pipe, place / "style.safetensors", name="style", format="kohya")
    studio.detach(pipe)
    from safetensors.torch import load_file

    save_file(load_file(file) | {f"bundle_emb.{name}.{key}": torch.randn(2, width)}, file)
    return file


def test_an_adapter_that_brings_a_word(tmp_path):
    pipe = tiny_pipelines.build("sd1")
    file, before = bundle(pipe, tmp_path), standing(pipe)
    report = studio.load(pipe, file, name="style")
    assert report.embeddings == ("foo",) and "bundle_emb.foo.clip_l" in report.applied and not report.ignored
    assert studio.embeddings(pipe) == {"foo": ("foo", "embedding:foo")} and list(studio.adapters(pipe)) == ["style"]
    with pytest.raises(DoesNotFit, match="'foo' already"):
        studio.load(pipe, file, name="again")
    assert list(studio.adapters(pipe)) == ["style"], "nothing half-done"
    studio.detach(pipe)
    studio.remove_embedding(pipe, "foo")
    assert standing(pipe) == before


@pytest.mark.parametrize("name, width, error", [("my.foo", 16, "without a dot"), ("foo", 24, "24 .*clip_l.*reads 16")])
def test_an_adapter_that_brings_what_cannot_be_read(tmp_path, name, width, error):
    pipe = tiny_pipelines.build("sd1")
    file, before = bundle(pipe, tmp_path, name, width), standing(pipe)
    with pytest.raises((studio.errors.BadFile, DoesNotFit), match=error):
        studio.load(pipe, file)
    assert standing(pipe) == before and not studio.adapters(pipe)
    report = studio.load(pipe, file, allow_partial=True)
    assert list(report.ignored) == [f"bundle_emb.{name}.clip_l"] and not report.embeddings


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def emoji(tmp_path):
    generator = torch.Generator().manual_seed(0)
    save_file({"<cat-toy>": torch.randn(2, 128, generator=generator)}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": torch.randn(3, 128, generator=generator)}, tmp_path / "Bad.v2.safetensors")
    return ImagePipeline.open("emoji")


def pixels(image):
    return image.tobytes()


def test_pictures_say_their_words_and_are_made_again(emoji, tmp_path):
    (plain,) = emoji.generate("a cat-toy", steps=2)
    emoji.load(tmp_path / "learned_embeds.safetensors")
    emoji.load(tmp_path / "Bad.v2.safetensors")
    assert emoji.embeddings == {"cat-toy": ("<cat-toy>", "embedding:cat-toy"), "Bad.v2": ("Bad.v2", "embedding:Bad.v2")}
    (image,) = emoji.generate("a <cat-toy>", negative="(bad.v2:1.2)", steps=2)
    said = json.loads(image.info["studio"])["embeddings"]
    assert [(use["name"], use["file"]) for use in said] == [
        ("cat-toy", "learned_embeds.safetensors"), ("Bad.v2", "Bad.v2.safetensors"),
    ]  # fmt: skip
    assert (
        f'TI hashes: "cat-toy: {said[0]["sha256"][:12]}, Bad.v2: {said[1]["sha256"][:12]}"' in image.info["parameters"]
    )
    assert "embeddings" not in json.loads(emoji.generate("a cat-toy", steps=2)[0].info["studio"])
    assert pixels(regenerate(image, pipe=emoji)) == pixels(image)
    assert pixels(regenerate(image, adapters=[tmp_path])) == pixels(image)
    with pytest.raises(UnknownName, match="the embedding 'cat-toy' of the picture .* is not among those given"):
        regenerate(image)
    for name in list(emoji.embeddings):
        emoji.unload(name)
    assert pixels(emoji.generate("a cat-toy", steps=2)[0]) == pixels(plain) and not emoji.sources


def test_a_picture_is_not_made_again_with_other_words(emoji, tmp_path):
    (plain,) = emoji.generate("a cat-toy", steps=2)
    emoji.load(tmp_path / "Bad.v2.safetensors")
    (image,) = emoji.generate("a dog", negative="bad.v2", steps=2)
    emoji.unload("Bad.v2")
    with pytest.raises(UnknownName, match="the embedding 'Bad.v2' of the picture is not loaded"):
        regenerate(image, pipe=emoji)
    save_file({"emb_params": torch.ones(3, 128)}, tmp_path / "Bad.v2.safetensors")
    emoji.load(tmp_path / "Bad.v2.safetensors")
    with pytest.raises(DoesNotFit, match="not the picture's: their hashes differ"):
        regenerate(image, pipe=emoji)
    save_file({"emb_params": torch.ones(3, 128)}, tmp_path / "cat.safetensors")
    emoji.load(tmp_path / "cat.safetensors")
    with pytest.raises(DoesNotFit, match="made without the embedding 'cat'"):
        regenerate(plain, pipe=emoji)


def test_words_that_are_not_loaded_are_named(emoji, tmp_path):
    emoji.load(tmp_path / "learned_embeds.safetensors", name="toy")
    for prompt, said in (
        ("a embedding:toi dog", "the embedding 'toi', which is not loaded .*did you mean 'toy'"),
        ("(embedding:other:1.2)", "the embedding 'other'"),
        ("a <cat-toi>", "asks for the adapter 'cat-toi'"),
        ("a embedding:toy.v2", "the embedding 'toy.v2'"),
    ):
        with pytest.raises(UnknownName, match=said):
            emoji.generate(prompt, steps=1)
    first, second, third = emoji.generate(["a <cat-toy>", "a embedding:toy", r"a embedding\:toi"], steps=1)
    assert pixels(first) == pixels(second) != pixels(third)


def test_an_adapter_and_its_word_go_together(emoji, tmp_path):
    file = bundle(emoji.pipe, tmp_path, width=128)
    emoji.load(file)
    (image,) = emoji.generate("foo <style:0.5>", steps=2)
    assert [use["name"] for use in json.loads(image.info["studio"])["embeddings"]] == ["foo"]
    assert pixels(regenerate(image, adapters=[file])) == pixels(image)
    emoji.unload("style")
    assert not emoji.embeddings and not emoji.adapters and not emoji.sources
    with pytest.raises(UnknownName):
        emoji.unload("style")


def test_a_pickle_has_to_be_asked_for(emoji, tmp_path):
    rows = torch.randn(2, 128)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "x"}, tmp_path / "my.word.pt")
    with pytest.raises(studio.errors.BadFile, match="can run code"):
        emoji.load(tmp_path / "my.word.pt")
    assert emoji.load(tmp_path / "my.word.pt", pickled=True).name == "my.word"
    assert emoji.embeddings == {"my.word": ("my.word", "embedding:my.word")}
    (image,) = emoji.generate("a my.word", steps=1)
    with pytest.raises(studio.errors.BadFile, match="can run code"):
        regenerate(image, adapters=[tmp_path / "my.word.pt"])
    assert pixels(regenerate(image, adapters=[tmp_path / "my.word.pt"], pickled=True)) == pixels(image)
    words = ("generate", "--from", save_png(image, tmp_path / "a.png"), "--adapter", tmp_path / "my.word.pt")
    result = CliRunner().invoke(main, [str(word) for word in (*words, "--pickled", "-o", tmp_path / "out")])
    assert result.exit_code == 0, result.output


def test_a_list_reads_words_for_the_jobs_alone_that_ask_for_them(emoji, tmp_path):
    """Whatever stands beside them, in one batch or before: a job is drawn as it is drawn alone."""
    save_file({"emb_params": torch.randn(2, 128)}, tmp_path / "zorb.safetensors")
    prompts = ["a embedding:zorb", "a zorb", "the embedding:zorb"]
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("\n".join(json.dumps({"prompt": one, "steps": 1, "seed": 1}) for one in prompts))
    render(jobs, tmp_path / "out", base="emoji", adapters={"zorb": tmp_path / "zorb.safetensors"}, batch_size=3)
    files = sorted((tmp_path / "out").glob("*.png"))
    said = ["embeddings" in read_metadata(file) for file in files]
    assert said == [True, False, True]
    (plain,) = emoji.generate("a zorb", steps=1, seeds=[1])
    assert pixels(Image.open(files[1]).convert("RGB")) == pixels(plain)
