"""Searches for the best way to merge fine-tuned models, and proves it on held-out items."""

__version__ = "0.1.0"
