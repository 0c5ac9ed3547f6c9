"""llama.cpp's adapter files: its names, its order of rows, one alpha; against its package and a merge by hand."""

from __future__ import annotations

import json
import struct

import pytest
import torch

import studio
from studio.errors import BadConfig, BadFile, DoesNotFit, PartialLoad, StudioError
from studio.families.language.runtimes import RUNTIMES, LlamaCppNames
from studio.files.export import export
from studio.files.gguf_container import write_gguf
from studio.gguf_header import checked_gguf
from tests.support.tiny import language, llama, shaken

gguf = pytest.importorskip("gguf")

MODELS = {"llama": "llama", "mistral": "llama", "gemma3": "gemma3", "gpt2": "gpt2"}


def qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, tie_word_embeddings=False, **sizes)).eval()


def phi3():
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    return Phi3ForCausalLM(Phi3Config(num_key_value_heads=2, pad_token_id=0, **sizes)).eval()


def model_of(name):
    return {"qwen2": qwen2, "phi3": phi3}.get(name, lambda: language(name))()


def adapted(name, **fields):
    model = model_of(name)
    studio.attach(model, studio.LoRA(**{"rank": 2, "alpha": 3.0, "targets": "all-linear"} | fields))
    return shaken(model)


def weights(model):
    return {
        path: module.weight.detach().double() for path, module in model.named_modules() if hasattr(module, "weight")
    }


def read(file):
    """What llama.cpp's own package finds in a file: entries, and tensors in torch's order."""
    reader = gguf.GGUFReader(file)
    entries = {key: field.contents() for key, field in reader.fields.items()}
    return entries, {one.name: torch.tensor(one.data.copy()).reshape([*reversed(one.shape.tolist())]) for one in
                     reader.tensors}  # fmt: skip


def theirs(weight, heads):
    """A weight as llama.cpp's converter turns it for positions in neighbouring pairs, row by row."""
    rows = len(weight) // heads
    order = [h * rows + j * rows // 2 + i for h in range(heads) for i in range(rows // 2) for j in (0, 1)]
    return weight[order]


@pytest.mark.parametrize("name", [*MODELS, "qwen2", "phi3"])
def test_merged_by_llama_cpps_rule_it_is_the_baked_model(name, tmp_path):
    """``W + alpha / r · lora_b @ lora_a`` in float64, in llama.cpp's names and order of rows, for every layer."""
    model = adapted(name)
    before = weights(model)
    assert export(model, tmp_path / "a.gguf", format="gguf").error == 0
    studio.bake(model)
    after = weights(model)
    entries, tensors = read(tmp_path / "a.gguf")
    assert (entries["general.type"], entries["adapter.type"]) == ("adapter", "lora")
    assert entries["general.architecture"] == MODELS.get(name, name) and entries["adapter.lora.alpha"] == 3.0
    names = gguf.get_tensor_name_map(
        next(one for one, word in gguf.MODEL_ARCH_NAMES.items() if word == entries["general.architecture"]), 2
    )
    sites, heads = studio.adapters(model)["default"].sites, {"q_proj": 4, "k_proj": 2}
    assert len(tensors) == 2 * len(sites) and len(sites) >= 8
    for path in sites:
        there = names.get_name(path)
        a, b = (tensors[f"{there}.weight.{end}"].double() for end in ("lora_a", "lora_b"))
        old, new = (one[path].T if name == "gpt2" else one[path] for one in (before, after))
        last = path.rpartition(".")[2]
        if entries["general.architecture"] == "llama" and last in heads:
            old, new = theirs(old, heads[last]), theirs(new, heads[last])
        assert torch.allclose(old + 3.0 / 2 * b @ a, new, atol=1e-6) and not torch.allclose(old, new, atol=1e-3), path


def test_the_order_of_rows_is_that_of_neighbouring_pairs():
    """Their turning of pairs ``(2i, 2i+1)`` on their rows is transformers' of ``(i, i + n/2)`` on ours."""
    names, weight = LlamaCppNames(llama(), ["model.layers.0.self_attn.q_proj"]), torch.randn(16, 16)
    turned = names.there("model.layers.0.self_attn.q_proj", weight)
    head, angle = 8, torch.linspace(0.3, 2.0, 4)

    def ours(y):
        one, other = y[:4], y[4:]
        return torch.cat([one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin()])

    def pairs(y):
        one, other = y[0::2], y[1::2]
        both = (one * angle.cos() - other * angle.sin(), other * angle.cos() + one * angle.sin())
        return torch.stack(both, 1).flatten()

    x = torch.randn(16)
    for begin in (0, head):
        q, there = ((one @ x)[begin : begin + head] for one in (weight, turned))
        assert torch.allclose(torch.cat([pairs(there)[0::2], pairs(there)[1::2]]), ours(q), atol=1e-5)
    assert torch.equal(names.back("model.layers.0.self_attn.q_proj", turned), weight)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_what_is_written_is_read_and_written_again(name, tmp_path):
    model = adapted(name, dropout=0.1)
    tensors = {key: one.clone() for key, one in studio.state(model).items()}
    first = studio.save(model, tmp_path / "a.gguf", metadata={"base": "tiny", "seed": "3"})
    studio.detach(model)
    report = studio.load(model, first)
    assert (report.format, report.method, dict(report.ignored)) == ("gguf", "lora", {})
    assert all(torch.equal(one, tensors[key]) for key, one in studio.state(model).items())
    assert studio.adapters(model)["default"].config.dropout == 0.1
    second = studio.save(model, tmp_path / "b.gguf")
    assert first.read_bytes() == second.read_bytes()
    found = studio.inspect(first)
    assert (found.format, found.method, found.ranks, found.scales) == ("gguf", "lora", {2: 14 if name != "gpt2" else 8},
                                                                       {1.5: 14 if name != "gpt2" else 8})  # fmt: skip
    assert found.facts["base"] == "tiny" and "general.type" not in found.facts


def test_check_37_a_file_of_their_own_writer(tmp_path):
    """Check 37: alpha 0, or none, is a scale of 1; other ranks have other scales under one alpha."""
    model = qwen2()
    for alpha in (None, 0.0, 6.0):
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_array("general.tags", ["a", "b"])
        if alpha is not None:
            writer.add_float32("adapter.lora.alpha", alpha)
        pairs = {}
        for rank, (there, path, width) in enumerate(
            (("attn_q", "self_attn.q_proj", 16), ("ffn_down", "mlp.down_proj", 32)), start=2
        ):
            a, b = torch.randn(rank, width), torch.randn(16, rank)
            writer.add_tensor(f"blk.1.{there}.weight.lora_a", a.numpy())
            writer.add_tensor(f"blk.1.{there}.weight.lora_b", b.numpy())
            pairs[f"model.layers.1.{path}"] = a, b, (alpha or rank) / rank
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        before = weights(model)
        assert studio.load(model, tmp_path / "a.gguf").sites == tuple(sorted(pairs))
        studio.bake(model)
        for path, (a, b, scale) in pairs.items():
            wanted = before[path] + scale * b.double() @ a.double()
            assert torch.allclose(weights(model)[path], wanted, atol=1e-6)
        studio.unbake(model)
        studio.detach(model)


def test_their_blocks_of_8_bits_are_read(tmp_path):
    model, path = qwen2(), "model.layers.0.mlp.down_proj"
    a, b = torch.randn(32, 32), torch.randn(16, 32)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    kind = gguf.GGMLQuantizationType.Q8_0
    codes = {end: gguf.quants.quantize(one.numpy(), kind) for end, one in (("lora_a", a), ("lora_b", b))}
    for end, one in codes.items():
        writer.add_tensor(f"blk.0.ffn_down.weight.{end}", one, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    studio.load(model, tmp_path / "a.gguf")
    for part, end in (("down", "lora_a"), ("up", "lora_b")):
        wanted = torch.tensor(gguf.quants.dequantize(codes[end], kind))
        assert torch.equal(studio.state(model)[f"{path}.{part}"], wanted)


def test_other_alphas_of_layers_become_one_with_the_same_change(tmp_path):
    model = adapted("llama", rank_pattern={"q_proj": 4}, alpha_pattern={"down_proj": 0.7, "up_proj": -2.0})
    assert export(model, tmp_path / "a.gguf", format="gguf").error < 1e-7
    assert read(tmp_path / "a.gguf")[0]["adapter.lora.alpha"] == 3.0
    assert studio.inspect(tmp_path / "a.gguf").ranks == {2: 12, 4: 2}


@pytest.mark.parametrize(("dtype", "kind", "most"), [("fp16", "F16", 2e-3), ("bf16", "BF16", 1.6e-2)])
def test_narrow_types(dtype, kind, most, tmp_path):
    model = adapted("llama")
    report = export(model, tmp_path / "a.gguf", format="gguf", dtype=dtype)
    assert 0 < report.error < most == pytest.approx(report.allowed, rel=0.05)
    assert {one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors} == {kind}


REFUSED = {
    "another method": (studio.LoHa(rank=2, targets=("q_proj",)), "rank"),
    "an embedding": (studio.LoRA(rank=2, targets=("embed_tokens",)), "embedding"),
    "a bias": (studio.LoRA(rank=2, use_bias=True, targets=("q_proj",)), "bias"),
    "a tied head": (studio.LoRA(rank=2, targets=("lm_head",)), "tied head"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_does_not_have_is_refused(what, tmp_path):
    config, says = REFUSED[what]
    model = llama(tie_word_embeddings=True)
    studio.attach(model, config)
    shaken(model)
    with pytest.raises(DoesNotFit, match=says):
        export(model, tmp_path / "a.gguf", format="gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_untied_head_is_its_output(tmp_path):
    model = llama(tie_word_embeddings=False)
    studio.attach(model, studio.LoRA(rank=2, targets=("lm_head",)))
    export(shaken(model), tmp_path / "a.gguf", format="gguf")
    assert sorted(read(tmp_path / "a.gguf")[1]) == ["output.weight.lora_a", "output.weight.lora_b"]


def test_models_whose_names_are_not_known_are_refused(tmp_path):
    for model in (language("opt"), torch.nn.Sequential(torch.nn.Linear(8, 8))):
        studio.attach(model, studio.LoRA(rank=2, targets="all-linear"))
        with pytest.raises(DoesNotFit, match="are not known here; those of these models are: llama, "):
            export(shaken(model), tmp_path / "a.gguf", format="gguf")


def test_a_file_for_another_architecture_is_refused_though_the_names_are_alike(tmp_path):
    studio.save(adapted("llama"), tmp_path / "a.gguf")
    with pytest.raises(DoesNotFit, match="the file is for llama.cpp's 'llama', and the model is its 'qwen2'"):
        studio.load(qwen2(), tmp_path / "a.gguf")


def test_a_name_says_what_is_in_a_file(tmp_path):
    model = adapted("llama")
    for name, format in (("a.safetensors", "gguf"), ("a", "gguf"), ("a.gguf", "kohya")):
        with pytest.raises(BadConfig, match="ends in"):
            studio.save(model, tmp_path / name, format=format)
    studio.save(model, tmp_path / "a.gguf").rename(tmp_path / "a.safetensors")
    with pytest.raises(BadFile, match="whose name has to end in .gguf"):
        studio.load(model, tmp_path / "a.safetensors")


def test_every_row_has_a_table_of_names():
    known = set(gguf.MODEL_ARCH_NAMES.values())
    assert all(row.architecture in known for row in RUNTIMES.values())


# -- files that are damaged, or want to do something -------------------------------------------------------------------


def text(word):
    return struct.pack("<Q", len(word)) + word.encode()


def entry(key, kind, data):
    return text(key) + struct.pack("<I", kind) + data


KNOWN = [entry("general.type", 8, text("adapter")), entry("adapter.type", 8, text("lora"))]
KNOWN += [entry("general.architecture", 8, text("qwen2"))]
Q = "blk.0.attn_q.weight.lora_a"


def tensor(name=Q, axes=(16, 2), kind=0, offset=0, count=None):
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes) if count is None else count, *axes, kind, offset)


def container(entries=(), tensors=(), *, version=3, counts=None, data=b"\0" * 4096):
    entries, tensors = [*KNOWN, *entries], list(tensors)
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(entries))))
    made = head + b"".join([*entries, *tensors])
    return made + b"\0" * (-len(made) % 32) + data


HUGE = 2**62
HOSTILE = {
    "empty": b"",
    "another magic": b"GGUX" + bytes(100),
    "another version": container(version=1),
    "the other order of bytes": container(version=struct.unpack(">I", struct.pack("<I", 3))[0]),
    "more tensors than there is room for": container(counts=(HUGE, 3)),
    "more entries than there is room for": container(counts=(0, HUGE)),
    "a list without end": container([entry("a", 9, struct.pack("<IQ", 0, HUGE))]),
    "a list of texts without end": container([entry("a", 9, struct.pack("<IQ", 8, HUGE))]),
    "a list of lists": container([entry("a", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1) * 2000)]),
    "a text without end": container([text("a") + struct.pack("<IQ", 8, HUGE)]),
    "a key without end": container([struct.pack("<Q", HUGE)]),
    "a key twice": container([entry("general.type", 8, text("adapter"))]),
    "a type that there is not": container([entry("a", 77, b"\0" * 8)]),
    "no UTF-8": container([entry("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")]),
    "a long key": container([entry("a" * 5000, 0, b"\0")]),
    "a tensor twice": container(tensors=[tensor(), tensor(offset=128)]),
    "many axes": container(tensors=[tensor(axes=(1,) * 9)]),
    "axes without end": container(tensors=[tensor(count=2**31)]),
    "a size without end": container(tensors=[tensor(axes=(2**40, 2**40))]),
    "beyond the file": container(tensors=[tensor(offset=1 << 20)]),
    "far beyond the file": container(tensors=[tensor(offset=2**63)]),
    "over each other": container(tensors=[tensor(), tensor("blk.0.attn_q.weight.lora_b", (2, 16), offset=64)]),
    "half a block": container(tensors=[tensor(axes=(16, 2), kind=8)]),
    "a type of few bits": container(tensors=[tensor(axes=(256, 2), kind=12)]),
    "an odd alignment": container([entry("general.alignment", 4, struct.pack("<I", 33))]),
    "no alignment": container([entry("general.alignment", 4, struct.pack("<I", 0))]),
    "an alignment in words": container([entry("general.alignment", 8, text("32"))]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(what, tmp_path):
    (tmp_path / "a.gguf").write_bytes(HOSTILE[what])
    model = qwen2()
    for action in (lambda: studio.inspect(tmp_path / "a.gguf"), lambda: studio.load(model, tmp_path / "a.gguf")):
        with pytest.raises(BadFile) as caught:
            action()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert studio.adapters(model) == {}


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    """At every length: in its header, in its padding, in its tensors."""
    model = adapted("qwen2", targets=("q_proj",))
    whole = studio.save(model, tmp_path / "a.gguf").read_bytes()
    for length in (*range(0, 600), *range(600, len(whole) - 32, 37)):
        (tmp_path / "b.gguf").write_bytes(whole[:length])
        with pytest.raises(BadFile):
            studio.inspect(tmp_path / "b.gguf")


def test_any_byte_that_is_changed_is_read_or_refused(tmp_path):
    """Never another error than the studio's, and nothing is half attached."""
    model = qwen2()
    studio.attach(model, studio.LoRA(rank=1, targets=("re:.*layers.0.*q_proj",)))
    shaken(model)
    whole = studio.save(model, tmp_path / "a.gguf").read_bytes()
    studio.detach(model)
    draw = torch.Generator().manual_seed(0)
    for place in torch.randint(0, len(whole), (400,), generator=draw).tolist():
        broken = bytearray(whole)
        broken[place] ^= 1 << int(torch.randint(0, 8, (), generator=draw))
        (tmp_path / "b.gguf").write_bytes(broken)
        try:
            studio.load(model, tmp_path / "b.gguf")
        except StudioError:
            assert studio.adapters(model) == {}
        else:
            studio.detach(model)


def test_what_is_in_a_gguf_file_that_is_no_adapter(tmp_path):
    pair = {"blk.0.attn_q.weight.lora_a": torch.zeros(2, 16), "blk.0.attn_q.weight.lora_b": torch.zeros(16, 2)}
    adapter = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "qwen2"}
    for entries, tensors, error, says in (
        (adapter | {"general.type": "model"}, pair, BadFile, "no adapter"),
        (adapter | {"adapter.type": "control"}, pair, BadFile, "'lora' is the one"),
        (adapter | {"adapter.lora.alpha": float("nan")}, pair, DoesNotFit, "no finite number"),
        (adapter, {Q: pair[Q]}, BadFile, "incomplete"),
        (adapter, pair | {"blk.0.attn_norm.weight": torch.ones(16)}, PartialLoad, "attn_norm"),
        (adapter, pair | {"blk.7.attn_q.weight.lora_a": pair["blk.0.attn_q.weight.lora_a"]}, PartialLoad, "blk.7"),
    ):
        write_gguf(tmp_path / "a.gguf", tensors, entries)
        with pytest.raises(error, match=says):
            studio.load(qwen2(), tmp_path / "a.gguf")
    tokens = [entry("adapter.alora.invocation_tokens", 9, struct.pack("<IQ", 4, 2) + b"\0" * 8)]
    both = [tensor(), tensor("blk.0.attn_q.weight.lora_b", (2, 16), offset=128)]
    (tmp_path / "a.gguf").write_bytes(container(tokens, both))
    with pytest.raises(DoesNotFit, match="acts only behind certain tokens"):
        studio.load(qwen2(), tmp_path / "a.gguf")


def test_the_header_is_what_their_reader_finds(tmp_path):
    """Another implementation, on a file of its own writer with every type of entry."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_bool("b", True)
    writer.add_int64("i", -5)
    writer.add_float64("d", 0.25)
    writer.add_array("l", [1, 7])
    writer.add_string("s", json.dumps({"é": 1}))
    writer.add_tensor("x", torch.arange(6.0).reshape(2, 3).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with (tmp_path / "a.gguf").open("rb") as stream:
        header = checked_gguf(tmp_path / "a.gguf", stream, stream.seek(0, 2))
    wanted, tensors = read(tmp_path / "a.gguf")
    assert header.entries["l"] is None and all(header.entries[key] == wanted[key] for key in "bids")
    assert header.tensors["x"].shape == tuple(tensors["x"].shape) == (2, 3)
