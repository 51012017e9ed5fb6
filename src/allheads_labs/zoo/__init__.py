"""The smallest random model of every family, for tests of whatever should hold for all of them."""

from allheads_labs.zoo.building import NotBuilt, Sample, build, names

__all__ = ["NotBuilt", "Sample", "build", "names"]
