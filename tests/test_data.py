import torch

from bench import data
from bench.stream import Stream


def test_parts_are_those_of_the_task_and_disjoint(parts):
    sizes = [len(split) for split in (parts.train, parts.heldout, parts.attacker, parts.test)]
    assert sizes == [800, 100, 300, 597]
    assert parts.labelled == 100
    from sklearn.datasets import load_digits

    everything = torch.cat([split.x for split in (parts.train, parts.heldout, parts.attacker, parts.test)])
    raw = (everything * 0.3756 + 0.3053) * 16
    known = torch.from_numpy(load_digits().images).float().flatten(1)
    # The same scans, each exactly once.
    assert torch.equal(raw.round().flatten(1).sort(0).values, known.sort(0).values)


def test_loading_twice_gives_the_same_digest(parts):
    again = data.load("digits")
    assert again.digest == parts.digest
    again.test.y[0] = (again.test.y[0] + 1) % 10
    del again.__dict__["digest"]
    assert again.digest != parts.digest


def test_inputs_are_normalised_by_the_owners_statistics(parts, task):
    assert abs(parts.train.x.mean().item()) < 1e-3
    assert abs(parts.train.x.std().item() - 1) < 1e-3
    white = task.normalised(torch.ones(1, 1, 8, 8))
    assert torch.allclose(white, torch.tensor((1 - 0.3053) / 0.3756))


def test_a_new_model_depends_on_the_stream_alone(task):
    torch.manual_seed(1)
    first = task.new_model(Stream(("init",)))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = task.new_model(Stream(("init",)))
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first.conv1.weight, task.new_model(Stream(("other",))).conv1.weight)
