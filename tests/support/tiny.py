"""Tiny models that several test files share, with the same random weights at every call, and what is done to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import studio

__all__ = [
    "LANGUAGE_MODELS",
    "Tower",
    "interrupted",
    "language",
    "llama",
    "noise_for",
    "shaken",
    "t5",
    "unet",
    "write_base",
    "write_encoder_base",
    "write_language_base",
    "write_speech_base",
    "write_vision_base",
    "write_wav",
]


class Tower(nn.Module):
    """One layer, called ``name``: an attention attends to its input and gives a tensor."""

    def __init__(self, layer: nn.Module, name: str = "layer") -> None:
        super().__init__()
        self.add_module(name, layer)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        layer = self.get_submodule(self.name)
        y = layer(x, x, x, need_weights=False) if "MultiheadAttention" in type(layer).__name__ else layer(x)
        return y[0] if isinstance(y, tuple) else y


def llama(**options: Any) -> nn.Module:
    """A Llama of two layers of width 16 over 32 tokens, but for ``options`` of its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "num_attention_heads": 2, **options})).eval()


def noise_for(pipe: Any, *seeds: int) -> Tensor:
    """What a UNet's picture of its native size begins with, a row for each seed: ``(B, C, side, side)``."""
    config = pipe.unet.config
    shape = 1, config.in_channels, config.sample_size, config.sample_size
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def t5(**options: Any) -> nn.Module:
    """A T5 of one layer of width 16 over 32 tokens, but for ``options`` of its config."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**{**sizes, "decoder_start_token_id": 0, **options})).eval()


def unet() -> nn.Module:
    """A conditional UNet for latents ``(B, 4, 8, 8)`` and contexts ``(B, L, 8)``."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def shaken(model: nn.Module, name: str = "default") -> nn.Module:
    """The model, after the adapter's tensors have been moved away from their start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in filter(torch.is_floating_point, studio.state(model, name).values()):
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    return model


@contextmanager
def interrupted(task: type, step: int) -> Iterator[None]:
    """Inside, a training whose tasks are of that class is interrupted after a step, and has to be."""
    after_step = task.after_step

    def die(self: Any, done: int) -> None:
        after_step(self, done)
        if done == step:
            raise InterruptedError

    with mock.patch.object(task, "after_step", die):
        try:
            yield
        except InterruptedError:
            return
    raise AssertionError(f"the training ended before step {step}")


# -- language models ---------------------------------------------------------------------------------------------------

_SIZES = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
_FEW = dict(num_key_value_heads=2, intermediate_size=32, pad_token_id=0, eos_token_id=None)
_BOTH = dict(vocab_size=64, d_model=16, eos_token_id=None)
_GEMMA = dict(head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"])
_GPT2 = dict(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=64)
_BART = dict(
    encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32,
    decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=1, forced_eos_token_id=None,
)  # fmt: skip
LANGUAGE_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SIZES | _FEW),
    "mistral": ("MistralForCausalLM", "MistralConfig", _SIZES | _FEW | dict(sliding_window=6)),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _SIZES | _FEW | _GEMMA),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2 | dict(pad_token_id=0, bos_token_id=1, eos_token_id=None)),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        _SIZES | dict(ffn_dim=32, word_embed_proj_dim=16, pad_token_id=0, eos_token_id=None),
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        _BOTH | dict(d_kv=4, d_ff=32, num_layers=3, num_heads=4, decoder_start_token_id=0),
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", _BOTH | _BART),
    "bert": ("BertForSequenceClassification", "BertConfig", _SIZES | dict(intermediate_size=32)),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _SIZES | dict(intermediate_size=32)),
}  # fmt: skip
"""Name -> the classes of transformers' model and config, and the sizes."""


def language(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A tiny language model of one of the :data:`LANGUAGE_MODELS`.

    Weights are large enough for every token to matter; texts have 64 token ids, 0 or 1 pads, the context is 64.
    """
    import transformers

    model, config, sizes = LANGUAGE_MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter *= 1.0 if name == "t5" else 8.0
    return made.to(dtype)


# -- bases in folders --------------------------------------------------------------------------------------------------


def write_base(folder: Path) -> Path:
    """Writes a diffusers folder of the SD1 family, small enough for a training step in milliseconds.

    64 × 64 pictures, latents of 4 × 8 × 8, ε-prediction; the tokenizer is the embedded base's.
    """
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    from studio.families import open_base

    tokenizer = open_base("emoji").pipe.tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text, denoiser, vae = _text_encoder(tokenizer), *_denoiser_and_vae()
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=denoiser,
        scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _text_encoder(tokenizer: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=24, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            projection_dim=16,
        )
    )  # fmt: skip


def _denoiser_and_vae() -> tuple[nn.Module, nn.Module]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    denoiser = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=64,
    )  # fmt: skip
    return denoiser, vae


def write_language_base(folder: Path, **options: Any) -> Path:
    """Writes a transformers folder of a Llama: grouped queries, tied embeddings, a context of 96, a chat template.

    But for ``options`` of its config.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    fast = _chat_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True, initializer_range=0.2,
                bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, **options,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_encoder_base(folder: Path) -> Path:
    """Writes a transformers folder of a BERT without head and dropout: WordPiece, a context of 48, two token types."""
    from transformers import BertConfig, BertModel

    fast = _piece_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=48, pad_token_id=fast.pad_token_id, initializer_range=0.1,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_speech_base(folder: Path) -> Path:
    """Writes a transformers folder of a Whisper that hears half a second at 16 kHz and writes byte by byte."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )  # fmt: skip

    tokenizer = _whisper_tokenizer()
    end, begin = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<|endoftext|>", "<|startoftranscript|>"))
    numbers = dict(decoder_start_token_id=begin, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=len(tokenizer), num_mel_bins=16, d_model=32, encoder_layers=1, decoder_layers=2,
                encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
                max_source_positions=25, max_target_positions=32, suppress_tokens=None, begin_suppress_tokens=None,
                init_std=0.2, **numbers,
            )
        )  # fmt: skip
    model.generation_config = GenerationConfig(**numbers)
    model.save_pretrained(folder)
    WhisperProcessor(
        WhisperFeatureExtractor(feature_size=16, chunk_length=1, sampling_rate=16_000), tokenizer
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _whisper_tokenizer() -> Any:
    """A tokenizer of bytes with Whisper's marks."""
    from tokenizers import pre_tokenizers
    from transformers import WhisperTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={letter: at for at, letter in enumerate(letters)}, merges=[])
    marks = ["<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.set_prefix_tokens()
    return tokenizer


def write_vision_base(folder: Path) -> Path:
    """Writes a transformers folder of a LLaVA: pictures of 16 pixels in four patches, a Llama that writes bytes."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    fast, side = _byte_tokenizer(), 16
    pictures = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(
        image_processor=pictures, tokenizer=fast, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.2
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=CLIPVisionConfig(image_size=side, patch_size=8, projection_dim=32, **sizes),
                text_config=LlamaConfig(
                    vocab_size=len(fast), num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None,
                    eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, **sizes,
                ),
                image_token_index=fast.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
                vision_feature_select_strategy="default",
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _byte_tokenizer() -> Any:
    """A tokenizer of single bytes, with a mark for pictures."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", extra_special_tokens=["<image>"],
        model_max_length=64,
    )  # fmt: skip


def write_wav(file: Path, hertz: float, *, rate: int = 16_000, seconds: float = 0.3) -> Path:
    """Writes a WAV file of 16 bits with one tone."""
    import wave

    times = torch.arange(int(rate * seconds), dtype=torch.float64) / rate
    samples = (20_000 * torch.sin(2 * torch.pi * hertz * times)).round().to(torch.int16)
    with wave.open(str(file), "wb") as written:
        written.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        written.writeframes(samples.numpy().astype("<i2").tobytes())
    return file


def _piece_tokenizer() -> Any:
    """A WordPiece tokenizer in lower case, of letters and a few words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=marks, show_progress=False, initial_alphabet=list("abcdefghijklmnopqrstuvwxyz")
    )
    tokenizer.train_from_iterator(["a good film , a bad film in accra and in lima"] * 4, trainer)
    ends = [(mark, tokenizer.token_to_id(mark)) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=48)


def _chat_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<end>", "<user>", "<bot>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(["What is the capital of France? The capital of France is Paris."] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", extra_special_tokens=["<user>", "<bot>"],
        model_max_length=96,
    )  # fmt: skip
    fast.chat_template = (
        "{% for message in messages %}{{ '<user>' if message['role'] == 'user' else '<bot>' }}"
        "{{ ' ' + message['content'] + '<end>' }}{% endfor %}{% if add_generation_prompt %}{{ '<bot>' }}{% endif %}"
    )
    return fast
