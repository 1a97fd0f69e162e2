"""Random walks one by one, as the released code of sparse-mask signatures takes them."""

import numpy as np

from defenses.tickets.kernel_walks import chain


def stepped(strength, here, chance):
    """One step of a walk, as the released code takes it."""
    while strength[:, here].sum() == 0:
        here = chance.integers(strength.shape[1])
    weights = strength[:, here] / strength[:, here].sum()
    return chance.choice(len(weights), p=weights), here


def looped(graph, found, count, chance):
    """Walks one by one, as the released code takes them; for chains whose channels keep their numbers."""
    visited = np.empty((len(chain(graph)), count), np.int64)
    for walk in range(count):
        here = chance.integers(found[chain(graph)[0].layer].shape[1])
        for number, step in enumerate(chain(graph)):
            strength = found[step.layer]
            after, here = stepped(strength, here, chance)
            visited[number, walk] = after * strength.shape[1] + here
            here = after
    return visited
