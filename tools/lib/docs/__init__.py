"""Blocks of the docs."""
