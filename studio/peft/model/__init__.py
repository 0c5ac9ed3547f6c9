"""A model with adapters on it: what is kept beside the core, and what PEFT's verbs and layers do with it."""
