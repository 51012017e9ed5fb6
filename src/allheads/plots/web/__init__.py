"""The style sheet, the scripts and the bodies of pages: plain files, put into each page as they are."""

from importlib.resources import files


def read(*names: str) -> str:
    """These files, one after the other."""
    return "\n".join(files("allheads.plots.web").joinpath(name).read_text("utf-8") for name in names)
