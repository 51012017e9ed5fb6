"""The smallest random model of every family, for tests of whatever should hold for all of them."""

from allheads_labs.zoo.building import build, names
from allheads_labs.zoo.sample import NotBuilt, Sample

__all__ = ["NotBuilt", "Sample", "build", "names"]
