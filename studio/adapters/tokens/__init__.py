"""The prompt side: virtual tokens before a language model's input, or before its keys."""
