"""From a checkpoint to a vision tower, a language model and its tokenizer."""
