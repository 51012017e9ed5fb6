"""The command line: thin, every line of work is a call into the package."""
