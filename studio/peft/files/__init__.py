"""An adapter's tensors under PEFT's names, and the folder that holds them."""
