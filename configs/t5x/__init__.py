"""Gin files for T5X, see docs/t5x.md."""
