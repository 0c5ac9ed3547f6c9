"""Files of learned words: the same vectors from each, written in each with the same bytes; hostile ones are refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.errors import BadConfig, BadFile, DoesNotFit, Refused, StudioError, UnknownName
from studio.files import EMBEDDINGS, Embedding, read_embeddings, save_embedding
from studio.files.embedding import made_for

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def vectors(width: int, count: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def a1111(rows: torch.Tensor, key: str = "*") -> dict:
    """What A1111 pickles of a word."""
    return {
        "string_to_token": {"*": 265}, "string_to_param": {key: rows}, "name": "typed", "step": 500,
        "sd_checkpoint": "a1b2", "sd_checkpoint_name": "v1-5",
    }  # fmt: skip


def one(file: Path, **how) -> Embedding:
    (word,) = read_embeddings(file, **how)
    return word


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


# -- every program's file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_program_s_file_of_one_encoder_has_the_same_vectors(tmp_path, dtype):
    """Check 35: the bytes and the dtype of each are those that were written by hand, as the program writes them."""
    rows = vectors(768, dtype=dtype)
    torch.save(a1111(rows.clone().requires_grad_()), tmp_path / "cat.pt")
    torch.save(a1111(rows) | {"string_to_param": nn.ParameterDict({"*": nn.Parameter(rows)})}, tmp_path / "old.pt")
    torch.save({"<cat>": rows}, tmp_path / "learned_embeds.bin")
    save_file({"emb_params": rows}, tmp_path / "kohya.safetensors")
    save_file({"<cat>": rows}, tmp_path / "diffusers.safetensors")
    save_file({"clip_l": rows}, tmp_path / "onetrainer.safetensors")
    save_file({"<cat>": rows}, tmp_path / "simo.safetensors", metadata={"<cat>": "<embed>"})
    save_file({"bundle_emb.foo.clip_l": rows}, tmp_path / "bundle.safetensors")
    save_file({"bundle_emb.foo.string_to_param.*": rows}, tmp_path / "bundle2.safetensors")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 9
    for file in files:
        word = one(file, pickled=True)
        assert [bits(tensor) for tensor in word.vectors.values()] == [bits(rows)], file.name
        assert {tensor.dtype for tensor in word.vectors.values()} == {dtype}
        assert word.title == "Stable Diffusion 1.x"
    names = {file.name: one(file, pickled=True) for file in files}
    assert (names["cat.pt"].token, names["cat.pt"].facts["step"]) == ("cat", "500"), "A1111 goes by the file's name"
    assert (names["learned_embeds.bin"].name, names["learned_embeds.bin"].token) == ("cat", "<cat>")
    assert (names["diffusers.safetensors"].name, names["diffusers.safetensors"].token) == ("diffusers", "<cat>")
    assert names["bundle.safetensors"].name == "foo"


@pytest.mark.parametrize("shape", [(768,), (1, 768), (3, 768)])
def test_a_single_vector_may_have_one_axis(tmp_path, shape):
    rows = torch.randn(*shape)
    save_file({"<cat>": rows}, tmp_path / "cat.safetensors")
    assert torch.equal(one(tmp_path / "cat.safetensors").vectors[""], rows.reshape(-1, 768))


def test_several_words_of_one_file(tmp_path):
    """cloneofsimo's: by metadata in safetensors, without it in a pickle."""
    words = {"<s1>": torch.randn(768), "<s2>": torch.randn(768)}
    save_file(words, tmp_path / "two.safetensors", metadata=dict.fromkeys(words, "<embed>"))
    torch.save(words, tmp_path / "two.ti.pt")
    for file in (tmp_path / "two.safetensors", tmp_path / "two.ti.pt"):
        read = read_embeddings(file, pickled=True)
        assert [(word.name, word.token) for word in read] == [("s1", "<s1>"), ("s2", "<s2>")]
        assert all(torch.equal(word.vectors[""][0], words[word.token]) for word in read)
    again = read_embeddings(save_embedding(read, tmp_path / "again.safetensors", format="cloneofsimo"))
    assert [bits(word.vectors[""]) for word in again] == [bits(word.vectors[""]) for word in read]
    with pytest.raises(DoesNotFit, match="holds one word, not 2"):
        save_embedding(read, tmp_path / "no.safetensors", format="kohya")


def picture(file: Path, text: str | None) -> Path:
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text("sd-ti-embedding", text)
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    return file


def test_a_picture_of_a1111(tmp_path):
    rows = vectors(768)
    content = a1111(rows) | {"string_to_param": {"*": {"TORCHTENSOR": rows.tolist()}}}
    file = picture(tmp_path / "cat.png", base64.b64encode(json.dumps(content).encode()).decode())
    assert torch.equal(one(file).vectors[""], rows) and one(file).token == "cat"
    assert studio.inspect(file).method == "textual inversion"


@pytest.mark.parametrize(
    "text",
    [None, "no base64!", base64.b64encode(b"[1]").decode(), base64.b64encode(b"{}").decode(),
     base64.b64encode(b'{"string_to_param": {"*": {"TORCHTENSOR": [[1], [1, 2]]}}}').decode(),
     base64.b64encode(b'{"string_to_param": {"*": "x"}}').decode(),
     base64.b64encode(b"[" * 100_000).decode()],
)  # fmt: skip
def test_other_pictures_are_refused(tmp_path, text):
    with pytest.raises(BadFile, match="cat.png"):
        read_embeddings(picture(tmp_path / "cat.png", text))


# -- round trips -------------------------------------------------------------------------------------------------------

WORDS = {
    "sd1": {"": vectors(768)},
    "sd2": {"": vectors(1024)},
    "sdxl": {"clip_l": vectors(768), "clip_g": vectors(1280, seed=1)},
    "sd3": {"clip_l": vectors(768), "clip_g": vectors(1280, seed=1), "t5xxl": vectors(4096, 3, seed=2)},
    "flux1": {"clip_l": vectors(768), "t5xxl": vectors(4096, 3, seed=2)},
    "behind": {"clip_l": vectors(768), "clip_l_out": vectors(768, seed=1)},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("format", EMBEDDINGS)
def test_written_in_every_format_and_back(tmp_path, kind, format, dtype):
    """A -> B -> A has the same bytes, or the format refuses by name; two writes are the same bytes."""
    made = {label: rows.to(dtype) for label, rows in WORDS[kind].items()}
    word = Embedding(name="cat", token="cat", vectors=made)
    file = tmp_path / ("cat.pt" if EMBEDDINGS[format].pickled else "cat.safetensors")
    alone = len(made) == 1
    holds = alone or format in ("onetrainer", "bundled") or (format == "kohya" and kind != "behind")
    if not holds:
        with pytest.raises(DoesNotFit, match="cat"):
            save_embedding(word, file, format=format)
        assert not file.exists()
        return
    read = one(save_embedding(word, file, format=format), pickled=True)
    assert read.format == (format if format != "onetrainer" or kind in ("sd3", "flux1", "behind") else "kohya")
    if alone:
        assert [bits(rows) for rows in read.vectors.values()] == [bits(made[""])]
    else:
        assert {label: bits(rows) for label, rows in read.vectors.items()} == {k: bits(v) for k, v in made.items()}
    assert (read.name, read.token) == ("cat", "cat") and {rows.dtype for rows in read.vectors.values()} == {dtype}
    before = file.read_bytes()
    again = save_embedding(read, file, format=format).read_bytes()
    assert again == before or (format == "onetrainer" and kind == "sd2")


def test_the_keys_are_those_that_the_programs_read(tmp_path):
    word = Embedding(name="cat", token="<cat>", vectors=WORDS["sd3"])
    rows = Embedding(name="cat", token="<cat>", vectors=WORDS["sd1"])

    def keys(word, format):
        return sorted(load_file(save_embedding(word, tmp_path / f"{format}.safetensors", format=format)))

    assert keys(word, "kohya") == ["clip_g", "clip_l", "t5xxl"]
    assert keys(word, "onetrainer") == ["clip_g", "clip_l", "t5"]
    assert keys(rows, "onetrainer") == ["clip_l"]
    assert keys(rows, "kohya") == ["emb_params"]
    assert keys(rows, "diffusers") == keys(rows, "cloneofsimo") == ["<cat>"]
    assert keys(rows, "bundled") == ["bundle_emb.cat.emb_params"]
    content = torch.load(save_embedding(rows, tmp_path / "cat.pt"), weights_only=True)
    assert list(content["string_to_param"]) == ["*"] and content["name"] == "cat"


@pytest.mark.parametrize("file", ["cat.pt", "cat.safetensors"])
def test_convert_writes_words_for_other_programs(tmp_path, file):
    rows = vectors(768, dtype=torch.float16)
    torch.save(a1111(rows), tmp_path / "cat.pt")
    save_file({"emb_params": rows}, tmp_path / "cat.safetensors")
    for program, key in (("a1111", "emb_params"), ("comfyui", "emb_params"), ("diffusers", "cat")):
        report = studio.files.convert(
            tmp_path / file, tmp_path / f"{program}.safetensors", program=program, pickled=True
        )
        assert report.method == "textual inversion" and "Stable Diffusion 1.x exactly"[:20] in str(report)
        written = load_file(tmp_path / f"{program}.safetensors")
        assert {name: bits(tensor) for name, tensor in written.items()} == {key: bits(rows)}
    with pytest.raises(DoesNotFit, match="peft reads no learned words"):
        studio.files.convert(tmp_path / file, tmp_path / "no.safetensors", program="peft", pickled=True)
    with pytest.raises(BadFile, match="there already"):
        studio.files.convert(tmp_path / file, tmp_path / "a1111.safetensors", format="kohya", pickled=True)
    with pytest.raises(UnknownName, match="kohia"):
        studio.files.convert(tmp_path / file, tmp_path / "no.safetensors", format="kohia", pickled=True)


@pytest.mark.parametrize("name", ["my.cat", "lora"])
def test_a_word_that_would_be_taken_for_something_else_is_not_converted(tmp_path, name):
    """diffusers' files have the word as their key, and these would be keys of adapters."""
    save_file({"emb_params": vectors(768)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(Refused, match="nothing is written"):
        studio.files.convert(tmp_path / f"{name}.safetensors", tmp_path / "new.safetensors", format="diffusers")
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("more", [{"dtype": "fp16"}, {"family": "sd1"}, {"base": "emoji"}])
def test_what_words_do_not_heed_is_refused(tmp_path, more):
    save_file({"emb_params": vectors(768)}, tmp_path / "cat.safetensors")
    with pytest.raises(BadConfig, match="leave these out"):
        studio.files.convert(tmp_path / "cat.safetensors", tmp_path / "new.safetensors", format="kohya", **more)
    assert not (tmp_path / "new.safetensors").exists()


def test_a_word_without_a_name_and_a_count_that_is_none(tmp_path):
    """The file's name stands in for a key without a letter; 5000 digits are no count of steps."""
    rows = vectors(768)
    save_file({"": rows}, tmp_path / "cat.safetensors", metadata={"": "<embed>"})
    word = one(tmp_path / "cat.safetensors")
    assert word.token == "cat" and torch.equal(word.vectors[""], rows)
    assert list(studio.inspect(tmp_path / "cat.safetensors").embeddings) == ["cat"]
    word = Embedding(name="cat", token="cat", vectors={"": rows}, facts={"step": "9" * 5000})
    content = torch.load(save_embedding(word, tmp_path / "cat.pt"), weights_only=True)
    assert content["step"] is None


def test_what_writes_adapters_says_that_words_are_none(tmp_path):
    save_file({"emb_params": vectors(768)}, tmp_path / "cat.safetensors")
    with pytest.raises(DoesNotFit, match="learned words"):
        studio.resize(tmp_path / "cat.safetensors", tmp_path / "small.safetensors", rank=2)


def test_a_pickle_s_name_is_asked_for(tmp_path):
    word = Embedding(name="cat", token="<cat>", vectors=WORDS["sd1"])
    with pytest.raises(BadConfig, match="end its name in .pt"):
        save_embedding(word, tmp_path / "cat.safetensors", format="a1111")
    with pytest.raises(DoesNotFit, match="has a dot"):
        save_embedding(
            Embedding(name="my.cat", token="x", vectors=WORDS["sd1"]), tmp_path / "c.safetensors", format="bundled"
        )


# -- which base --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "widths, family",
    [({"": 768}, "sd1"), ({"": 1024}, "sd2"), ({"clip_l": 768, "clip_g": 1280}, "sdxl"), ({"clip_l": 768}, "sd1"),
     ({"clip_l": 768, "clip_g": 1280, "t5xxl": 4096}, "sd3"), ({"clip_l": 768, "t5xxl": 4096}, "flux1")],
)  # fmt: skip
def test_the_base_is_told_by_the_widths(widths, family):
    found = made_for(widths)
    assert found is not None and found.name == family


def test_inspect_tells_words_from_the_header(tmp_path):
    save_file(
        {"clip_l": vectors(768), "clip_g": vectors(1280), "clip_g_out": vectors(1280)}, tmp_path / "cat.safetensors"
    )
    found = studio.inspect(tmp_path / "cat.safetensors")
    assert (found.format, found.method, found.family) == ("onetrainer", "textual inversion", "sdxl")
    assert found.embeddings == {"cat": {"clip_l": (2, 768), "clip_g": (2, 1280), "clip_g_out": (2, 1280)}}
    assert set(found.unread) == {"clip_g_out"}
    save_file(
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": torch.ones(1, 320),
         "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.ones(320, 1),
         "bundle_emb.foo.clip_l": vectors(768)}, tmp_path / "both.safetensors",
    )  # fmt: skip
    both = studio.inspect(tmp_path / "both.safetensors")
    assert both.method == "lora" and both.embeddings == {"foo": {"clip_l": (2, 768)}} and not both.unread


# -- hostile ones ------------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self):
        return print, ("a payload ran",)


HOSTILE = {
    "two entries": (a1111(vectors(768)) | {"string_to_param": {"*": vectors(768), "x": vectors(768)}}, "2 entries"),
    "no entry": (a1111(vectors(768)) | {"string_to_param": {}}, "no learned words"),
    "no table": (a1111(vectors(768)) | {"string_to_param": 5}, "table of tensors"),
    "a payload": (a1111(vectors(768)) | {"name": Payload()}, "more than tensors"),
    "whole numbers": (a1111(torch.ones(2, 768, dtype=torch.int64)), "I64"),
    "three axes": (a1111(torch.ones(1, 2, 768)), r"\(1, 2, 768\)"),
    "no vector": (a1111(torch.ones(0, 768)), r"\(0, 768\)"),
    "huge n": (a1111(torch.ones(5000, 8)), "5,000 vectors"),
    "huger n": (a1111(torch.ones(1, 768).expand(100_000, 768)), "76,800,000 numbers"),
    "NaN": (a1111(torch.full((2, 768), torch.nan)), "NaN"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles(tmp_path, capsys, kind):
    content, said = HOSTILE[kind]
    torch.save(content, tmp_path / "cat.pt")
    with pytest.raises(BadFile, match="can run code"):
        read_embeddings(tmp_path / "cat.pt")
    with pytest.raises((BadFile, Refused), match=said):
        read_embeddings(tmp_path / "cat.pt", pickled=True)
    assert "payload" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "keys, said",
    [({"bundle_emb.my.dog.clip_l": 768}, "without a dot"), ({"bundle_emb.dog": 768}, "without a dot"),
     ({"bundle_emb..clip_l": 768}, "without a dot"),
     ({"bundle_emb.dog.emb_params": 768, "bundle_emb.dog.clip_l": 768}, "does not say of which encoder"),
     ({"bundle_emb.dog.t5": 768, "bundle_emb.dog.t5xxl": 768}, "the same vectors"),
     ({"emb_params": 768, "clip_l": 768}, "no learned words"), ({"weight": 768}, "no learned words"),
     ({"prompt_embeddings": 768}, "no learned words")],
)  # fmt: skip
def test_hostile_keys(tmp_path, keys, said):
    save_file({key: vectors(width) for key, width in keys.items()}, tmp_path / "cat.safetensors")
    with pytest.raises(BadFile, match=said):
        read_embeddings(tmp_path / "cat.safetensors")


def test_encoders_that_stand_side_by_side_have_as_many_vectors(tmp_path):
    save_file({"clip_l": vectors(768, 2), "clip_g": vectors(1280, 3)}, tmp_path / "cat.safetensors")
    with pytest.raises(BadFile, match="2 of clip_l"):
        read_embeddings(tmp_path / "cat.safetensors")


@pytest.mark.parametrize("bad", ["", " ", "a\nb", "x" * 300])
def test_no_word(bad):
    from studio.families.vocabulary import spellings_of

    with pytest.raises(StudioError, match="cannot be a word"):
        spellings_of(token=bad, name="cat")
