"""Which file is meant, what an adapter is called, and what is said of requests that have no effect."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import studio
from studio.errors import BadFile, DoesNotFit, UnknownName
from studio.families import FAMILIES
from studio.pipelines import ImagePipeline
from studio.pipelines.making import read_tags
from studio.pipelines.remarks import Remark, remarks


@pytest.fixture(scope="module")
def pipe(tiny_base):
    return ImagePipeline.open(tiny_base)


@pytest.fixture
def clean(pipe):
    yield pipe
    for name in list(pipe.adapters):
        pipe.unload(name)


@pytest.fixture(scope="module")
def dog(tiny_base, tmp_path_factory):
    """An adapter file that changes something, called ``dog`` in itself."""
    own = ImagePipeline.open(tiny_base)
    studio.attach(own, studio.LoRA(rank=2), name="dog")
    with torch.no_grad():
        for tensor in studio.state(own.pipe, "dog").values():
            tensor.fill_(0.01)
    return studio.save(own, tmp_path_factory.mktemp("dog") / "dog.safetensors", name="dog")


def test_the_folder_of_a_run_is_its_adapter(clean, dog, tmp_path):
    run = tmp_path / "runs" / "dog"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.toml").touch()
    with pytest.raises(BadFile, match="is not finished, so it has no adapter.safetensors yet: let it go on$"):
        clean.load(run)
    (run / "checkpoints" / "step-000004.safetensors").write_bytes(dog.read_bytes())
    with pytest.raises(BadFile, match=r"or take its newest checkpoint, .*step-000004\.safetensors$"):
        clean.load(run)
    (run / "adapter.safetensors").write_bytes(dog.read_bytes())
    assert clean.load(run).name == "dog" and clean.sources["dog"].file == "adapter.safetensors"


def test_names_that_nobody_gave(clean, dog, tmp_path):
    nameless = {key: value for key, value in load_file(dog).items()}
    for place in ("a/adapter", "b/adapter", "c/my.cat v2", "d/pytorch_lora_weights"):
        file = (tmp_path / place).with_name(f"{(tmp_path / place).name}.safetensors")
        file.parent.mkdir()
        save_file(nameless, file)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "adapter.safetensors").write_bytes(dog.read_bytes())
    files = ["a/adapter", "b/adapter", "c/my.cat v2", "d/pytorch_lora_weights"]
    loaded = [clean.load(tmp_path / f"{file}.safetensors").name for file in files]
    assert loaded == ["a", "b", "my-cat-v2", "d"]
    assert clean.load(dog).name == "dog"
    assert clean.load(tmp_path / "e" / "adapter.safetensors").name == "e"  # its own name is taken
    with pytest.raises(DoesNotFit, match=r"dog\.safetensors is loaded already, as 'dog': give it a name"):
        clean.load(dog)
    assert clean.load(dog, name="hound").name == "hound"
    # a tag may say the file's own name, dots and all
    assert read_tags(clean.base, "x <my.cat-v2:0.5>").blend == {"my-cat-v2": 0.5}
    with pytest.raises(UnknownName, match="did you mean 'dog'"):
        read_tags(clean.base, "x <dag.v3>")


def test_home_is_found(clean, dog, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(dog.parent))
    assert clean.load("~/dog.safetensors").name == "dog"


def test_files_that_may_hold_code_are_read_on_request(clean, dog, tmp_path):
    torch.save(load_file(dog), tmp_path / "cat.pt")
    with pytest.raises(BadFile, match="pickled=True"):
        clean.load(tmp_path / "cat.pt")
    assert clean.load(tmp_path / "cat.pt", pickled=True).name == "cat"


def test_an_adapter_for_another_width_is_one_sentence(clean, dog, tmp_path):
    keys = {key: value for key, value in load_file(dog).items() if ".unet." in f".{key}"}
    wide = {
        key: torch.zeros(len(value), 768) if "attn2.to_k" in key and "lora_A" in key else value
        for key, value in keys.items()
    }
    wide = {key: value for key, value in wide.items() if "attn2.to_v" not in key}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(
        DoesNotFit, match=r"was made for text of width 768.*, and tiny has width \d+: load it on the base"
    ):
        clean.load(tmp_path / "wide.safetensors")


@pytest.mark.parametrize(
    ("prompts", "more", "said"),
    [
        (["a (red:1.3) dog"], {}, 0),
        (["a (red:1.3) dog"], {"family": FAMILIES["sana"]}, 1),
        (["a dog", "a ((red)) dog", "[blue:0.5] dog"], {"family": FAMILIES["sana"]}, 1),
        (["a dog (small)", "sks [robot]", "time 12:30", "a <dog:0.8> (wet)"], {"family": FAMILIES["flux2"]}, 0),
        (["a dog BREAK a cat"], {"family": FAMILIES["sd1"]}, 0),
        (["a dog BREAK a cat"], {"family": FAMILIES["sd3"]}, 1),
        (["a dog AND a cat"], {}, 1),
        (["a [dog:cat:30]"], {"steps": 20}, 1),
        (["a [dog:cat:20]", "a [dog:cat:0.9]"], {"steps": 20}, 0),
        (["a dog"], {"negative": "blurry", "guidance": 1}, 1),
        (["a dog"], {"negative": "(blurry:2)", "guidance": 1.0, "family": FAMILIES["z-image"]}, 2),
        (["a dog"], {"negative": "", "guidance": 1}, 0),
        (["a dog"], {"negative": "blurry", "guidance": 1.5}, 0),
    ],
)
def test_what_has_no_effect_is_said(prompts, more, said):
    assert len(remarks(prompts, **{"negative": None, "guidance": 5.0, **more})) == said


def test_a_remark_is_a_warning_in_python(pipe):
    with pytest.warns(Remark, match="guidance 1 is the prompt alone"):
        pipe.generate("a dog", negative="blurry", guidance=1, steps=1)
    with pytest.warns(Remark, match="AND in 'a dog AND a cat' is drawn as a word"):
        pipe.generate("a dog AND a cat", steps=1)


def test_words_for_number_formats(tiny_base):
    for word, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32), (torch.bfloat16, torch.bfloat16)):
        assert ImagePipeline.open(tiny_base, dtype=word).pipe.unet.dtype == dtype
    with pytest.raises(UnknownName, match="no number format is named 'bf61'; did you mean 'bf16'"):
        ImagePipeline.open(tiny_base, dtype="bf61")


def test_the_verbs_of_the_core_take_a_pipeline(clean, dog):
    studio.load(clean, dog, name="dog", strength=0.5)
    assert list(studio.adapters(clean)) == list(clean.adapters) == ["dog"]
    studio.blend(clean, {"dog": 0.25})
    with studio.blended(clean, {"dog": 1.0}):
        assert clean.adapters["dog"].strength == 1.0
    assert clean.adapters["dog"].strength == 0.25
    studio.bake(clean)
    studio.unbake(clean)
    studio.detach(clean)
    assert not clean.adapters


def test_reprs_are_short(clean, dog):
    report = clean.load(dog)
    for thing in (clean, clean.base, clean.adapters["dog"], report):
        assert len(repr(thing)) < 600, repr(thing)
    assert repr(clean) == "<ImagePipeline on tiny; adapters: dog>"
