"""Which part of the CPUs and GPUs of which node each slot gets. No Ray here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.errors import InputError

# Ray's precision of fractional resources.
_PARTS = 10_000
# Slots of a GPU where nobody says how many: more of them mostly wait for each other's kernels.
MOST_PER_GPU = 8
# What a slot should have of a GPU: two CUDA contexts and a job.
_MB_PER_SLOT = 4096.0

Bundle = dict[str, float]


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        name: for people.
        cpus: that it offers.
        gpus: whole ones that it offers.
    """

    id: str
    name: str
    cpus: float
    gpus: int


@dataclass(frozen=True)
class Seat:
    """What each of the two processes of a slot asks for.

    Attributes:
        node: id of the node.
        bundle: index of the bundle, among those reserved on that node, that it is taken from.
        cpus: share of CPUs.
        gpus: share of the bundle's GPU.
    """

    node: str
    bundle: int
    cpus: float
    gpus: float


@dataclass
class _Place:
    """Where slots share a bundle: one GPU, or the CPUs of a node."""

    node: Node
    most: int
    slots: int = 0


def layout(
    nodes: Sequence[Node],
    device: Literal["cpu", "cuda"],
    threads: int,
    workers: int | None = None,
    gpus: int | None = None,
    per_gpu: int | None = None,
) -> tuple[dict[str, list[Bundle]], list[Seat]]:
    """What to reserve on each node, and the seat of each slot; slots are spread evenly.

    On GPUs a bundle is one whole GPU with the slots that share it: left to itself, Ray would fill the first
    GPU with the processes of all owners before it looks at the second.

    Args:
        nodes: in the order in which they are preferred.
        device: of all slots.
        threads: per slot.
        workers: number of slots; None: as many as fit.
        gpus: number to use; more than `workers` are not needed. None: all.
        per_gpu: slots that may share a GPU; None: no limit for `workers`, else `MOST_PER_GPU`.

    Raises:
        InputError: more is asked for than there is.
    """
    _require(nodes, device, (workers or 1) * threads, gpus)
    if device == "cpu":
        places = [_Place(node, math.floor(node.cpus / threads)) for node in nodes]
    else:
        most = per_gpu or (MOST_PER_GPU if workers is None else workers)
        places = [_Place(node, most) for node in nodes for _ in range(node.gpus)][:gpus]
    _fill(places, threads, workers)
    found = sum(place.slots for place in places)
    if found < (workers or 1):
        offer = ", ".join(f"{node.name}: {node.cpus:g} CPUs, {node.gpus} GPUs" for node in nodes)
        limit = f", at most {per_gpu} on each GPU" if per_gpu and device == "cuda" else ""
        raise InputError(f"there is room for {found} of {workers or 1} workers of {threads} threads{limit}: {offer}")
    return _seats([place for place in places if place.slots], device, threads)


def slots_for(memory: float | None, most: int) -> int:
    """How many slots should share a GPU.

    Args:
        memory: MiB that are free on it; None: not known.
        most: as many as the CPUs allow.
    """
    return 1 if memory is None else max(1, min(most, int(memory // _MB_PER_SLOT)))


def _require(nodes: Sequence[Node], device: str, cpus: int, gpus: int | None) -> None:
    """Refuse what all nodes together do not have."""
    there = sum(node.gpus for node in nodes)
    wanted = there if gpus is None else gpus
    if device == "cuda" and not 1 <= wanted <= there:
        raise InputError(f"GPU: the workers need {max(wanted, 1)}, there are {there}")
    total = sum(node.cpus for node in nodes)
    if cpus > total:
        raise InputError(f"CPU: the workers need {cpus}, there are {total:g}")


def _fill(places: list[_Place], threads: int, workers: int | None) -> None:
    """Give slots out, each to the place with the fewest, while the CPUs of its node last."""
    room = {place.node.id: math.floor(place.node.cpus / threads) for place in places}
    given = 0
    while workers is None or given < workers:
        free = [place for place in places if place.slots < place.most and room[place.node.id] > 0]
        if not free:
            return
        chosen = min(free, key=lambda place: place.slots)
        chosen.slots += 1
        room[chosen.node.id] -= 1
        given += 1


def _seats(places: list[_Place], device: str, threads: int) -> tuple[dict[str, list[Bundle]], list[Seat]]:
    bundles: dict[str, list[Bundle]] = {}
    seats: list[Seat] = []
    for place in places:
        bundle: Bundle = {"CPU": threads * place.slots}
        if device == "cuda":
            bundle["GPU"] = 1
        mine = bundles.setdefault(place.node.id, [])
        mine.append(bundle)
        share = math.floor(_PARTS / (2 * place.slots)) / _PARTS if device == "cuda" else 0.0
        seats += [Seat(place.node.id, len(mine) - 1, threads / 2, share)] * place.slots
    return bundles, seats
