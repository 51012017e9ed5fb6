"""The experiments on the command line."""
