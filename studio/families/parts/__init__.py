"""What several families share: encodings, layouts of latents, schedules, rules of guidance, names of layers."""
