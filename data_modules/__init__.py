"""Benchmarks as records, and records as batches. The lower layer: it never imports ``cir_lightning``."""
