"""Which slot sits where."""

from collections import Counter

import pytest

from bench.errors import InputError
from bench.workers.seats import MOST_PER_GPU, Node, layout, slots_for


def node(name, cpus, gpus=0):
    return Node(name, name, cpus, gpus)


@pytest.mark.parametrize(("workers", "gpus"), [(1, 1), (3, 2), (5, 4), (7, 1), (2, 8), (24, 8)])
def test_slots_are_even_over_gpus_and_fit(workers, gpus):
    bundles, seats = layout([node("a", 100, gpus)], "cuda", 2, workers)
    slots = Counter(seat.bundle for seat in seats)
    assert len(seats) == workers
    assert len(bundles["a"]) == len(slots) == min(workers, gpus)
    assert max(slots.values()) - min(slots.values()) <= 1
    for number, bundle in enumerate(bundles["a"]):
        assert bundle == {"GPU": 1, "CPU": 2 * slots[number]}
        asked = sum(2 * seat.gpus for seat in seats if seat.bundle == number)
        assert 1 - 0.0002 * workers <= asked <= 1


def test_slots_are_even_over_nodes_as_far_as_their_cpus_go():
    nodes = [node("head", 0), node("small", 3), node("large", 16)]
    bundles, seats = layout(nodes, "cpu", 2, 6)
    assert bundles == {"small": [{"CPU": 2}], "large": [{"CPU": 10}]}
    assert Counter(seat.node for seat in seats) == {"small": 1, "large": 5}
    assert {(seat.cpus, seat.gpus) for seat in seats} == {(1.0, 0.0)}
    everything, seats = layout(nodes, "cpu", 2)
    assert everything == {"small": [{"CPU": 2}], "large": [{"CPU": 16}]}
    assert len(seats) == 9


def test_without_a_number_a_gpu_has_as_many_slots_as_its_cpus_serve():
    nodes = [node("a", 6, 2), node("b", 64, 1), node("no card", 64)]
    bundles, seats = layout(nodes, "cuda", 1)
    assert bundles == {"a": [{"CPU": 3, "GPU": 1}] * 2, "b": [{"CPU": MOST_PER_GPU, "GPU": 1}]}
    assert len(seats) == 6 + MOST_PER_GPU


def test_a_set_share_is_kept():
    bundles, seats = layout([node("a", 64, 4)], "cuda", 1, per_gpu=4)
    assert bundles["a"] == [{"CPU": 4, "GPU": 1}] * 4
    assert [seat.gpus for seat in seats] == [0.125] * 16
    _, seats = layout([node("a", 64, 4)], "cuda", 1, workers=6, per_gpu=4)
    assert Counter(seat.bundle for seat in seats) == {0: 2, 1: 2, 2: 1, 3: 1}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"device": "cpu", "threads": 2, "workers": 9}, "CPU: the workers need 18, there are 16"),
        ({"device": "cpu", "threads": 9}, "room for 0 of 1 workers of 9 threads: a: 8 CPUs, 1 GPUs, b: 8 CPUs"),
        ({"device": "cuda", "threads": 1, "workers": 5, "per_gpu": 2}, "room for 4 of 5 .* at most 2 on each GPU"),
        ({"device": "cuda", "threads": 1, "gpus": 3}, "GPU: the workers need 3, there are 2"),
        ({"device": "cuda", "threads": 1, "workers": 20}, "CPU: the workers need 20, there are 16"),
    ],
)
def test_what_is_not_there_is_an_error(asked, message):
    with pytest.raises(InputError, match=message):
        layout([node("a", 8, 1), node("b", 8, 1)], **asked)


@pytest.mark.parametrize(
    ("memory", "most", "slots"), [(None, 8, 1), (2000, 8, 1), (24_000, 8, 5), (140_000, 8, 8), (140_000, 3, 3)]
)
def test_a_gpu_has_as_many_slots_as_its_memory_serves(memory, most, slots):
    assert slots_for(memory, most) == slots
