"""Studies: arms and seeds, each an ordinary ``cir fit`` and ``cir test`` in a folder of its own, and what they show together."""
