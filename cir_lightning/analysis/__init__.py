"""``cir analyze``: what a trained model gets wrong, and what its prompts are used for."""
