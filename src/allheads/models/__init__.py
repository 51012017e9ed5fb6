"""Pretrained models: loading, reading MLPs, putting heads in their place; only here are their libraries imported."""
