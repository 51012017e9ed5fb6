"""Attention as motion in a potential: how far the physics reading carries, and where the weights contradict it.

>>> from allheads_labs import physics
>>> found = physics.potential(twin, "Mary and John", "L3.A5")  # doctest: +SKIP
>>> physics.memory(twin, "L3.A5").share  # doctest: +SKIP
"""

from allheads_labs.physics.figures import plot_steps, plot_trajectories
from allheads_labs.physics.memories import memory
from allheads_labs.physics.paths import trajectories
from allheads_labs.physics.potentials import potential
from allheads_labs.physics.probing import probes, spread_windows
from allheads_labs.physics.segments import overlaps, segment

__all__ = [
    "memory",
    "overlaps",
    "plot_steps",
    "plot_trajectories",
    "potential",
    "probes",
    "segment",
    "spread_windows",
    "trajectories",
]
