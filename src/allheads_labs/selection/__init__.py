"""Choosing the important tokens: error by data, length and dimension, for targets of known smoothness."""
