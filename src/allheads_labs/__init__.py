"""Experiments that anyone can rerun: ``allheads lab --help``."""
