"""Twins on disk: `save` writes a folder, `load` reads it, or any other model. Never a pickle, never foreign code."""
