"""Small stand-ins for what tests must not download: a model and data sets."""
