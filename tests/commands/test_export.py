"""``studio export``: adapters for other programs, and whole language models, proven before they are kept."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from click.testing import CliRunner

import studio
from studio.adapters import blended
from studio.cli import main
from studio.errors import BadConfig, BadFile, DoesNotFit, NoEffect, Refused
from studio.families.language import open_language_base
from studio.files import export as exporting
from studio.files.export import export
from studio.pipelines.whole_model import write_whole_model
from tests.support.tiny import llama, shaken, write_language_base

CONFIGS = {
    "a": studio.LoRA(rank=2, alpha=3.0, targets="all-linear"),
    "b": studio.LoRA(rank=3, targets="attention"),
    "h": studio.LoHa(rank=2, targets="attention"),
}
TOKENS = torch.arange(4, 20)[None]
OUT = {"gguf": "out.gguf", "mlx": "out", "peft": "out"}


def studio_(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output + str(result.stderr)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, and files of adapters for it."""
    folder = tmp_path_factory.mktemp("export")
    model = open_language_base(write_language_base(folder / "base")).model
    for name, config in CONFIGS.items():
        studio.attach(model, config, name=name)
        studio.save(shaken(model, name), folder / f"{name}.safetensors", name=name)
        studio.detach(model, name)
    return folder


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def live(folder, **strengths):
    """What the base gives with adapters at strengths."""
    model = open_language_base(folder / "base").model
    for name, strength in strengths.items():
        studio.load(model, folder / f"{name}.safetensors", strength=strength)
    return logits(model)


@pytest.mark.parametrize("target", OUT)
@pytest.mark.parametrize("blend", [{"a": 1.0}, {"a": 0.6}, {"a": 0.6, "b": -0.5}], ids=str)
def test_what_was_exported_does_what_the_blend_does(folder, tmp_path, target, blend):
    adapters = [
        word for name, strength in blend.items() for word in ("--adapter", f"{folder / name}.safetensors:{strength}")
    ]
    out = tmp_path / OUT[target]
    said = json.loads(studio_("export", folder / "base", *adapters, "--to", target, "-o", out, "--json").stdout)
    assert said["format"] == target and said["error"] <= 1e-5 and said["lost"] == 0 and said["sites"] == 14
    model = open_language_base(folder / "base").model
    studio.load(model, out)
    wanted = live(folder, **blend)
    assert (logits(model) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_another_method_becomes_a_lora_of_a_rank_and_what_is_left_out_is_said(folder, tmp_path):
    words = (
        "export",
        folder / "base",
        "--adapter",
        folder / "h.safetensors",
        "--to",
        "gguf",
        "-o",
        tmp_path / "h.gguf",
    )
    assert "--rank N" in studio_(*words, code=2).stderr and list(tmp_path.iterdir()) == []
    said = json.loads(studio_(*words, "--rank", 1, "--json").stdout)
    model = open_language_base(folder / "base").model
    sites = studio.load(model, folder / "h.safetensors").sites
    before = [model.get_submodule(path).weight.detach().double() for path in sites]
    studio.bake(model)
    lacking = whole = 0.0
    for path, weight in zip(sites, before, strict=True):
        values = torch.linalg.svdvals(model.get_submodule(path).weight.detach().double() - weight)
        lacking, whole = lacking + float(values[1:].square().sum()), whole + float(values.square().sum())
    assert said["lost"] == pytest.approx((lacking / whole) ** 0.5, rel=1e-3) and said["error"] <= 1e-5
    assert "the rank leaves out" in studio_(*words[:-1], tmp_path / "again.gguf", "--rank", 1).stdout


def test_a_file_that_does_not_prove_itself_is_taken_away(folder, tmp_path, monkeypatch):
    """What is read again differs: here because reading is made to."""
    load = exporting.load

    def altered(model, file, *, name, strength):
        report = load(model, file, name=name, strength=strength)
        next(iter(studio.state(model, name).values())).data.mul_(1.001)
        return report

    monkeypatch.setattr(exporting, "load", altered)
    for target, name in OUT.items():
        words = ("--adapter", folder / "a.safetensors", "--to", target, "-o", tmp_path / name)
        said = studio_("export", folder / "base", *words, code=3).stderr
        assert "1.0e-03 off at model.layers.0.mlp.down_proj" in " ".join(said.split())
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_is_too_narrow_is_refused(tmp_path):
    """Factors below fp16's smallest number."""
    model = llama()
    studio.attach(model, studio.LoRA(rank=2, targets="attention"))
    for key, tensor in studio.state(shaken(model)).items():
        tensor.data *= 1e-7 if key.endswith("up") else 1.0
    with pytest.raises(Refused, match="store it in fp32"):
        export(model, tmp_path / "a.gguf", format="gguf", dtype="fp16")
    assert list(tmp_path.iterdir()) == [] and [*studio.adapters(model)] == ["default"]


def test_requests_that_cannot_be(folder, tmp_path):
    model = llama()
    studio.attach(model, studio.LoRA(rank=2, targets="attention"))
    shaken(model)
    with pytest.raises(DoesNotFit, match="no adapter acts"):
        export(model, tmp_path / "a.gguf", format="gguf", blend={"default": 0.0})
    (tmp_path / "a.gguf").touch()
    with pytest.raises(BadFile, match="is there already"):
        export(model, tmp_path / "a.gguf", format="gguf")
    for words, says in (
        (("--to", "gguf", "-o", tmp_path / "x"), "--adapter"),
        (("--adapter", folder / "a.safetensors", "--to", "gguf", "-o", tmp_path / "x"), "ends in .gguf"),
        (("--adapter", folder / "a.safetensors", "--to", "model", "--rank", 2, "-o", tmp_path / "x"), "--rank"),
        (("--adapter", folder / "a.safetensors", "--to", "onnx", "-o", tmp_path / "x"), "onnx"),
    ):
        assert says in " ".join(studio_("export", folder / "base", *words, code=2).stderr.split())
    words = ("export", "emoji", "--adapter", folder / "a.safetensors", "--to", "mlx", "-o", tmp_path / "x")
    assert "draws pictures" in studio_(*words, code=2).stderr


def test_a_model_is_left_as_it_was(tmp_path):
    model = llama()
    for name in ("a", "b"):
        studio.attach(model, studio.LoRA(rank=2, targets="attention"), name=name)
        shaken(model, name)
    before, blend = logits(model), {"a": 0.3, "b": 1.0}
    studio.blend(model, blend)
    wanted = logits(model)
    export(model, tmp_path / "a.gguf", format="gguf")
    assert [*studio.adapters(model)] == ["a", "b"] and torch.equal(logits(model), wanted)
    studio.blend(model, {"a": 1.0, "b": 1.0})
    assert torch.equal(logits(model), before)


def test_virtual_tokens_go_into_a_folder_of_peft(tmp_path):
    model = llama()
    studio.attach(model, studio.PromptTuning(tokens=3))
    shaken(model)
    assert export(model, tmp_path / "a", format="peft").error == 0


# -- the whole model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["bake", "export"])
def test_a_whole_language_model_needs_no_adapter(folder, tmp_path, command):
    """Logits of the blend; tokenizer, chat template and settings for writing come along."""
    more = ("--to", "model") if command == "export" else ()
    words = ("--adapter", f"{folder}/a.safetensors:0.7", "--adapter", folder / "h.safetensors")
    said = studio_(command, folder / "base", *words, *more, "-o", tmp_path / "m").stdout
    assert "it writes what the blend writes, to the bit" in said
    base, made = open_language_base(folder / "base"), open_language_base(tmp_path / "m")
    wanted = live(folder, a=0.7, h=1.0)
    assert (logits(made.model) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert made.tokenizer_hash == base.tokenizer_hash and made.template == base.template
    assert made.model.generation_config.to_dict() == base.model.generation_config.to_dict()
    assert not any("adapters" in key for key in made.model.state_dict())


def test_a_tied_head_that_was_changed_alone_is_a_head_of_its_own(tmp_path):
    base = open_language_base(write_language_base(tmp_path / "base"))
    studio.attach(base.model, studio.LoRA(rank=2, targets=("lm_head",)))
    wanted = logits(shaken(base.model))
    folder, _ = write_whole_model(base, tmp_path / "m")
    made = open_language_base(folder).model
    assert (logits(made) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert not made.config.tie_word_embeddings and base.model.config.tie_word_embeddings
    with blended(base.model, {}), pytest.raises(NoEffect, match="changes nothing that is written"):
        write_whole_model(base, tmp_path / "n")
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("scaled", [
    {"rope_type": "default"},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 2.0},
], ids=lambda scaled: scaled["rope_type"])  # fmt: skip
def test_how_positions_turn_stands_where_other_programs_look(scaled, tmp_path):
    """mlx_lm and older releases of transformers read ``rope_theta`` and ``rope_scaling`` at the top of a config."""
    said = {"rope_theta": 77_000.0, **scaled}
    base = open_language_base(write_language_base(tmp_path / "base", rope_parameters=said))
    assert logits(base.model).ne(logits(open_language_base(write_language_base(tmp_path / "usual")).model)).any()
    studio.attach(base.model, studio.LoRA(rank=2, targets="attention"))
    wanted = logits(shaken(base.model))
    folder, _ = write_whole_model(base, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["rope_theta"] == 77_000.0 and config["rope_parameters"].items() >= said.items()
    assert config.get("rope_scaling", {"rope_type": "default"}).items() >= scaled.items()
    made = open_language_base(folder).model
    assert (logits(made) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_base_in_few_bits_is_written_in_the_type_that_it_computes_in(tmp_path):
    base = open_language_base(write_language_base(tmp_path / "base"), quantize="grid4")
    studio.attach(base.model, studio.LoRA(rank=2, targets="attention"))
    wanted = logits(shaken(base.model))
    folder, apart = write_whole_model(base, tmp_path / "m")
    made = open_language_base(folder)
    assert apart <= 1e-4 and (logits(made.model) - wanted).abs().max() <= 1e-3 * wanted.abs().max()
    assert {type(one).__name__ for one in made.model.modules() if "proj" in type(one).__name__.lower()} == set()


LABELS = ("ham", "spam")


@pytest.mark.parametrize(
    ("base", "opened_as"),
    [
        ("words", {}), ("speech", {}), ("figures", {}), ("facts", {"kind": "encoder"}),
        ("facts", {"kind": "classifier", "labels": LABELS}), ("facts", {"kind": "token-classifier", "labels": LABELS}),
    ],
)  # fmt: skip
def test_models_of_every_kind_are_written_whole(base, opened_as, tmp_path):
    opened = open_language_base(base, **opened_as)
    studio.attach(opened.model, studio.LoRA(rank=2, targets="attention"))
    shaken(opened.model)
    folder, apart = write_whole_model(opened, tmp_path / "m")
    again = open_language_base(folder, kind=opened.kind.name)
    assert apart <= 1e-4 and again.labels == opened.labels
    wanted = {name: weight for name, weight in opened.model.state_dict().items() if "q_proj" in name}
    assert any(not torch.equal(one, wanted[name]) for name, one in again.model.state_dict().items() if name in wanted)


def test_a_base_is_baked_as_what_its_adapter_was_trained_on(tmp_path):
    opened = open_language_base("facts", kind="classifier", labels=LABELS)
    studio.attach(opened.model, studio.LoRA(rank=2, targets="attention"))
    facts = {"kind": "classifier", "labels": json.dumps(LABELS)}
    file = studio.save(shaken(opened.model), tmp_path / "a.safetensors", metadata=facts)
    studio_("bake", "facts", "--adapter", file, "-o", tmp_path / "baked")
    studio_("export", "facts", "--adapter", file, "--to", "model", "-o", tmp_path / "exported")
    for name in ("baked", "exported"):
        assert open_language_base(tmp_path / name, kind="classifier").labels == LABELS


# -- conversions -------------------------------------------------------------------------------------------------------


def test_files_of_language_models_are_converted_to_each_other(folder, tmp_path):
    said = studio_("convert", folder / "a.safetensors", "--base", folder / "base", "--format", "gguf", "-o",
                   tmp_path / "a.gguf").stdout  # fmt: skip
    assert "from diffusers to gguf exactly" in said
    for source, target, out in (("a.gguf", "mlx", "m"), ("m", "peft", "p"), ("p", "diffusers", "b.safetensors")):
        words = ("--base", folder / "base", "--format", target, "-o", tmp_path / out)
        assert "exactly" in studio_("convert", tmp_path / source, *words).stdout
    model = open_language_base(folder / "base").model
    for name, file in (("one", folder / "a.safetensors"), ("other", tmp_path / "b.safetensors")):
        studio.load(model, file, name=name)
    one, other = (studio.state(model, name) for name in ("one", "other"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -- used by other commands --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", OUT)
def test_what_was_exported_is_taken_by_the_other_commands(folder, tmp_path, target):
    out = tmp_path / OUT[target]
    studio_("export", folder / "base", "--adapter", folder / "a.safetensors", "--to", target, "-o", out)
    file = {"mlx": out / "adapters.safetensors", "peft": out / "adapter_model.safetensors"}.get(target, out)
    made = json.loads(studio_("inspect", out, "--hashes", "--json").stdout)["hashes"]["made"]
    assert made["file"] == hashlib.sha256(file.read_bytes()).hexdigest() and made["wrong"] == {}
    ask = ("complete", folder / "base", "Hi?", "--max-new-tokens", 6, "--json", "--adapter")
    texts = [
        json.loads(studio_(*ask, file).stdout)["completions"][0]["text"] for file in (folder / "a.safetensors", out)
    ]
    assert texts[0] == texts[1]


def test_an_ending_in_capitals_is_the_same_ending(folder, tmp_path):
    model = open_language_base(folder / "base").model
    studio.load(model, folder / "a.safetensors")
    assert studio.load(model, studio.save(model, tmp_path / "A.GGUF", name="a"), name="again").format == "gguf"
    with pytest.raises(BadConfig, match="suffix of a pickled file"):
        studio.save(model, tmp_path / "a.PT", name="a")
