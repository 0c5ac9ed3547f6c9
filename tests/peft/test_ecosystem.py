"""With ``sys.modules["peft"] = studio.peft`` diffusers and transformers treat our layers as they treat PEFT's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import sys, warnings
import torch
import studio.peft
sys.modules["peft"] = studio.peft
torch.manual_seed(0)

def same(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)
"""

DIFFUSERS = """
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer

def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()

inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 3, 8))
run = lambda model: model(*inputs).sample
file = {"weight_name": "pytorch_lora_weights.safetensors"}
with torch.no_grad():
    model, plain = unet(), run(unet())
    for name in ("dog", "ink"):
        model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False), name)
    model.set_adapters("dog"); dog = run(model)
    model.set_adapters("ink"); ink = run(model)
    assert not same(dog, plain, 1e-4) and not same(dog, ink, 1e-4)
    model.set_adapters(["dog", "ink"], weights=[0.5, 0.25]); both = run(model)
    assert sorted(model.active_adapters()) == ["dog", "ink"]
    model.fuse_lora(); assert same(run(model), both); model.unfuse_lora()
    assert same(run(model), both, 1e-6)
    model.disable_adapters(); assert same(run(model), plain, 0.0)
    model.enable_adapters(); assert same(run(model), both, 0.0)
    model.set_adapters("dog")
    model.save_lora_adapter(folder, adapter_name="dog")
    other = unet()
    other.load_lora_adapter(folder, adapter_name="cat", prefix=None, **file)
    assert same(run(other), dog)
    other.load_lora_adapter(folder, adapter_name="cat", prefix=None, hotswap=True, **file)
    assert same(run(other), dog)
    model.delete_adapters("dog"); model.set_adapters("ink"); assert same(run(model), ink)
    model.unload_lora(); assert same(run(model), plain, 0.0)
    assert not any(isinstance(module, BaseTunerLayer) for module in model.modules())
print("done")
"""

TRANSFORMERS = """
from transformers import LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, PeftModel, get_peft_model

def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                        num_attention_heads=2)).eval()

ids = torch.arange(8).view(1, 8)
with torch.no_grad():
    model, plain = llama(), llama()(ids).logits
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False), adapter_name="a")
    first = model(ids).logits
    assert not same(first, plain, 1e-4) and model.active_adapters() == ["a"]
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False), adapter_name="b")
    second = model(ids).logits
    model.set_adapter("a"); assert same(model(ids).logits, first, 0.0)
    model.disable_adapters(); assert same(model(ids).logits, plain, 0.0)
    model.enable_adapters(); assert same(model(ids).logits, first, 0.0)
    assert set(model.get_adapter_state_dict("a")) == {
        f"model.layers.0.self_attn.{x}_proj.lora_{y}.weight" for x in "qv" for y in "AB"}
    model.save_pretrained(folder)
    other = llama()
    other.load_adapter(folder, "again")
    assert same(other(ids).logits, first)
    model.delete_adapter("a"); model.set_adapter("b"); assert same(model(ids).logits, second, 0.0)

from transformers import Trainer, TrainingArguments
wrapped = get_peft_model(llama(), LoraConfig(r=4, task_type="CAUSAL_LM"))
data = [{"input_ids": ids[0], "labels": ids[0]}] * 8
arguments = TrainingArguments(folder + "/run", max_steps=4, learning_rate=1e-2, report_to=[], use_cpu=True,
                              logging_steps=1, per_device_train_batch_size=2, save_steps=4, disable_tqdm=True,
                              label_names=["labels"])
trainer = Trainer(wrapped, arguments, train_dataset=data)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert losses[-1] < losses[0], losses
saved = PeftModel.from_pretrained(llama(), folder + "/run/checkpoint-4")
with torch.no_grad():
    assert same(saved(ids).logits, wrapped.eval()(ids).logits)
print("done")
"""

TRAINER = """
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from peft import LoraConfig, get_peft_model

def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                        num_attention_heads=2)).eval()

data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8

# resuming, and the best checkpoint, are loaded onto the name that is there
arguments = lambda name, **more: TrainingArguments(
    f"{folder}/{name}", max_steps=4, save_steps=2, eval_steps=2, eval_strategy="steps", learning_rate=1e-2,
    report_to=[], use_cpu=True, per_device_train_batch_size=2, disable_tqdm=True, label_names=["labels"], **more)
trained = lambda model: [one.detach().clone() for one in model.parameters() if one.requires_grad]
def train(name, config, checkpoint=None, **more):
    torch.manual_seed(1)
    model = get_peft_model(llama(), config())
    found = Trainer(model, arguments(name, **more), train_dataset=data, eval_dataset=data)
    found.train(resume_from_checkpoint=checkpoint)
    return trained(model)
for name, config in {
    "lora": lambda: LoraConfig(r=4, task_type="CAUSAL_LM"),
    "pissa": lambda: LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights="pissa"),
    "head": lambda: LoraConfig(r=4, task_type="CAUSAL_LM", modules_to_save=["lm_head"]),
    "tokens": lambda: LoraConfig(r=4, task_type="CAUSAL_LM", trainable_token_indices=[1, 2]),
}.items():
    whole = train(name, config)
    again = train(name, config, f"{folder}/{name}/checkpoint-2")
    assert all(same(a, b, 1e-5) for a, b in zip(whole, again, strict=True)), name
    best = train(name + "-best", config, load_best_model_at_end=True, metric_for_best_model="eval_loss")
    assert all(same(a, b, 1e-5) for a, b in zip(whole, best, strict=True)), name  # the loss falls: the last is the best
print("done")
"""


TRL = """
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from peft import LoraConfig, PeftModel, PromptTuningConfig
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(29))]
made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
made.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
texts = Dataset.from_dict({"text": [" ".join(f"w{(i + j) % 29}" for j in range(8)) for i in range(8)]})
pairs = Dataset.from_dict({"prompt": ["w1 w2"] * 8, "chosen": [f" w{i}" for i in range(8)], "rejected": [" w9"] * 8})
ids = torch.arange(3, 11).view(1, 8)

def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, tie_word_embeddings=True))

def run(trainer, settings, config, data, name, again=False):
    arguments = settings(folder + "/" + name, max_steps=4, save_steps=2, learning_rate=1e-2, logging_steps=1,
                         per_device_train_batch_size=2, use_cpu=True, report_to=[], disable_tqdm=True, bf16=False)
    found = trainer(model=llama(), args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=config)
    found.train(resume_from_checkpoint=f"{folder}/{name}/checkpoint-2" if again else None)
    return found

def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits[:, -8:]  # a soft prompt has columns before the text

lora = dict(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
for name, config in {
    "lora": LoraConfig(**lora),
    "head": LoraConfig(**lora, modules_to_save=["lm_head"]),
    "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}.items():
    first = run(SFTTrainer, SFTConfig, config, texts, name)
    want = logits(first.model)
    assert not same(want, logits(llama()), 1e-4), name
    assert same(logits(PeftModel.from_pretrained(llama(), f"{folder}/{name}/checkpoint-4")), want), name
    assert same(logits(run(SFTTrainer, SFTConfig, config, texts, name, again=True).model), want), name
    losses = [entry["loss"] for entry in first.state.log_history if "loss" in entry]
    assert name != "head" or losses[-1] < losses[0] - 0.1, losses  # its weight is read and never called
preferred = run(DPOTrainer, DPOConfig, LoraConfig(**lora), pairs, "dpo")
losses = [entry["loss"] for entry in preferred.state.log_history if "loss" in entry]
assert losses[-1] < losses[0], losses
assert same(logits(PeftModel.from_pretrained(llama(), f"{folder}/dpo/checkpoint-4")), logits(preferred.model))
print("done")
"""

DOCS = """
import os, pathlib, re
from transformers import LlamaConfig, LlamaForCausalLM

blocks = re.findall(r"```python\\n(.*?)```", pathlib.Path(page).read_text(encoding="utf-8"), re.S)
os.chdir(folder)
LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                             num_attention_heads=2, tie_word_embeddings=True)).save_pretrained("my-model")
texts = [{"input_ids": torch.arange(8), "labels": torch.arange(8), "unused": 3}] * 8
for number, block in enumerate(blocks):
    exec(compile(block, f"block {number}", "exec"), globals())
trained = {name for name, one in trainer.model.named_parameters() if one.requires_grad}
assert trained and sorted(os.listdir("run")) == ["checkpoint-2", "checkpoint-4"]
for place in ("my-lora", "run/checkpoint-2"):
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(os.listdir(place))
print("done")
"""

PAGE = Path(__file__).parents[2] / "docs" / "from-peft.md"
SCRIPTS = [
    ("diffusers", DIFFUSERS),
    ("transformers", TRANSFORMERS),
    pytest.param("transformers", TRAINER, marks=pytest.mark.slow),
    pytest.param("transformers", DOCS, marks=pytest.mark.slow),
    pytest.param("trl", TRL, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("library, script", SCRIPTS)
def test_under_the_name_peft(library, script, tmp_path):
    pytest.importorskip(library)
    code = f"{HEAD}\nfolder, page = {str(tmp_path)!r}, {str(PAGE)!r}\n{script}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]
