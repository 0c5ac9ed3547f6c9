"""What a training will take, before anything is loaded: the real lessons on tensors without numbers."""
