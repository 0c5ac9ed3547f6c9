"""What the tasks on image models share: pictures as latents, prompts, the objective, the prior, the lesson."""
