"""Attention as motion in a potential: how far the physics reading carries, and where the weights contradict it.

>>> import allheads as ah
>>> found = ah.physics.potential(twin, "Mary and John", "L3.A5")  # doctest: +SKIP
>>> ah.physics.memory(twin, "L3.A5").share  # doctest: +SKIP
"""

from allheads.physics.memories import memory
from allheads.physics.paths import trajectories
from allheads.physics.potentials import potential
from allheads.physics.probing import probes
from allheads.physics.segments import overlaps, segment

__all__ = ["memory", "overlaps", "potential", "probes", "segment", "trajectories"]
