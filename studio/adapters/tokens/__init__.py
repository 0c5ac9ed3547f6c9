"""The prompt side: virtual tokens before a language model's input, or before its keys."""

from studio.adapters.tokens import wiring as wiring  # language models let adapters act from here on
