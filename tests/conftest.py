"""Fixtures that several test files share, and the settings under which every test runs."""

from __future__ import annotations

import os

# before torch is imported anywhere: one thread per process (the tests run in several), no network
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import settings
from PIL import Image

torch.set_num_threads(1)
# the same examples each time, no clock (the machine may be busy), no folder of past examples
settings.register_profile("studio", derandomize=True, deadline=None, database=None)
settings.load_profile("studio")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture
def picture():
    """Returns a maker of pictures that are all different: ``picture(seed, (width, height), mode)``."""

    def make(seed: int = 0, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> Image.Image:
        draw = numpy.random.default_rng(seed)
        # large patches, so that the pictures survive scaling and JPEG
        patches = draw.integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
        return Image.fromarray(patches).resize(size, Image.Resampling.NEAREST).convert(mode)

    return make


@pytest.fixture
def photos(tmp_path: Path, picture) -> Path:
    """A clean folder of five pictures of 64 x 64 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        picture(number, (64, 64)).save(folder / f"photo{number}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the SD1 family with random weights, small enough for a training step in milliseconds.

    64 × 64 pictures, latents of 4 × 8 × 8, ε-prediction; the tokenizer is the embedded base's.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from studio.families import open_base

    tokenizer = open_base("emoji").pipe.tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=24, bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, projection_dim=16,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=64,
        )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet,
        scheduler=DDPMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("bases") / "tiny"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of a Llama with random weights: grouped-query heads, tied embeddings, a context of 96.

    The tokenizer is a byte-level one with a chat template; a training step takes milliseconds.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True, initializer_range=0.2,
                bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
            )
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("bases") / "tiny-language"
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def language_model():
    """Returns a maker of tiny language models of many kinds, ``language_model(kind, dtype)``, the same for each call.

    Weights are large enough for every token to matter; texts have 64 token ids, 0 or 1 pads, the context is 64.
    """
    import transformers as library

    sizes = dict(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    few = dict(num_key_value_heads=2, intermediate_size=32, pad_token_id=0, eos_token_id=None)
    both = dict(vocab_size=64, d_model=16, eos_token_id=None)
    bart = dict(
        encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, pad_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    makers = {
        "llama": lambda: library.LlamaForCausalLM(library.LlamaConfig(**sizes, **few)),
        "mistral": lambda: library.MistralForCausalLM(library.MistralConfig(**sizes, **few, sliding_window=6)),
        "gemma3": lambda: library.Gemma3ForCausalLM(
            library.Gemma3TextConfig(
                **sizes, **few, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
            )
        ),
        "gpt2": lambda: library.GPT2LMHeadModel(
            library.GPT2Config(
                vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, bos_token_id=1,
                eos_token_id=None,
            )
        ),
        "opt": lambda: library.OPTForCausalLM(
            library.OPTConfig(**sizes, ffn_dim=32, word_embed_proj_dim=16, pad_token_id=0, eos_token_id=None)
        ),
        "t5": lambda: library.T5ForConditionalGeneration(
            library.T5Config(**both, d_kv=4, d_ff=32, num_layers=3, num_heads=4, decoder_start_token_id=0)
        ),
        "bart": lambda: library.BartForConditionalGeneration(library.BartConfig(**both, **bart)),
        "bert": lambda: library.BertForSequenceClassification(library.BertConfig(**sizes, intermediate_size=32)),
        "roberta": lambda: library.RobertaForSequenceClassification(
            library.RobertaConfig(**sizes, intermediate_size=32)
        ),
    }  # fmt: skip

    def make(kind: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = makers[kind]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter *= 1.0 if kind == "t5" else 8.0
        return model.to(dtype)

    return make
