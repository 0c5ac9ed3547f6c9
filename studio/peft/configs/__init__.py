"""PEFT's configs: their classes, what they say in the studio's words, and which layers they name."""
