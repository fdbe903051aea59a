"""``cir bench``: where the time of training, encoding and ranking goes."""
