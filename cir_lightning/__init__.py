"""CIR-LVLM in PyTorch Lightning: composed image retrieval with a large vision-language model as encoder."""

__version__ = "0.1.0"
