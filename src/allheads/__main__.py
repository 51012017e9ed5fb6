"""``python -m allheads``: the command line, for launchers that start modules."""

from allheads.cli.main import app

if __name__ == "__main__":
    app()
