"""Attention heads that read one token and its bias tokens: as data, as a module, evaluated three ways."""
