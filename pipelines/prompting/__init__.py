"""The prompt language: adapter tags, wildcards, words that count more or less, words that change while it denoises."""
