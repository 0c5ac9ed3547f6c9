"""Tokenizers of the text encoders' kinds, with a few words each, made without a network."""

from __future__ import annotations

from transformers import CLIPTokenizer, GemmaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer, T5Tokenizer


def byte_characters() -> list[str]:
    """The 256 characters by which byte-level BPE writes bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(rest))]


def chains(words: list[str], end: str = "") -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges that make each word one token, letter by letter from its beginning."""
    tokens: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = [*word[:-1], word[-1] + end]
        held = parts[0]
        for part in parts[1:]:
            merges[held, part] = None
            held += part
            tokens[held] = None
    return list(tokens), list(merges)


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's: lower-cased bytes, 77 places, ``<|startoftext|>`` and ``<|endoftext|>``.

    OpenAI's CLIP pads with the end token, OpenCLIP's (Stable Diffusion 2, second tokenizer of XL and 3) with ``"!"``,
    which is token 0.
    """
    tokens, merges = chains(["photo", "dog", "cat", "sks"], "</w>")
    base = byte_characters()
    vocab = dict.fromkeys([*base, *(c + "</w>" for c in base), *tokens, "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(vocab)}, merges=merges, model_max_length=77, pad_token=pad)


def t5_tokenizer() -> T5Tokenizer:
    """T5's: ``<pad>`` 0, ``</s>`` 1, ``<unk>`` 2, letters, some words; ``</s>`` is put at the end."""
    letters = [(c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ,.:;!?'-()<>\"/"]
    words = [(f"▁{word}", -3.0) for word in ("a", "photo", "of", "dog", "cat", "sks")]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0), *letters, *words]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> GemmaTokenizer:
    """Gemma's: ``<pad>`` 0, ``<eos>`` 1, ``<bos>`` 2, the 256 byte tokens and ASCII; ``<bos>`` comes first."""
    tokens, merges = chains(["photo", "dog", "cat", "sks"])
    vocab = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    vocab += [chr(code) for code in range(33, 127)] + tokens
    return GemmaTokenizer(
        vocab={t: i for i, t in enumerate(dict.fromkeys(vocab))}, merges=merges, padding_side="right",
        add_bos_token=True, model_max_length=8192,
    )  # fmt: skip


QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Each of these is one token in the real vocabulary, so Qwen-Image's template is 34 tokens long here as well.
QWEN_WORDS = ["system", "user", "assistant", "Describe", "photo", "dog", "cat", "sks"] + [
    "Ġ" + word
    for word in (
        "the image by detailing color shape size texture quantity text spatial relationships of objects and background "
        "photo dog cat sks a"
    ).split()
]


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's: bytes, ``<|endoftext|>`` pads, ``<|im_start|>``/``<|im_end|>``, a chat template."""
    tokens, merges = chains(QWEN_WORDS)
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*byte_characters(), *tokens, "<|endoftext|>"]))}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, model_max_length=131072, padding_side="right")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = QWEN_CHAT
    return tokenizer


MISTRAL_CHAT = (
    "{{ bos_token }}{% for m in messages %}{% set s = m['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' if s else '[INST]' }}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
    "{{ '[/SYSTEM_PROMPT]' if s else '[/INST]' }}{% endfor %}"
)


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Stands in for FLUX.2-dev's PixtralProcessor, which transformers 5.23 refuses to load without torchvision."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]"]
    vocab = {t: i for i, t in enumerate([*special, *byte_characters()])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=special[4:], model_max_length=1024, padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = MISTRAL_CHAT
    return tokenizer
