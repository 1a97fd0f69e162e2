"""Scores of kernels against their definitions, path by path and walk by walk, and the ranking of a ticket's weights."""

import typing
from collections import defaultdict

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_nets import NETS, masked, routes
from nets import KINDS
from scipy.special import logsumexp
from scipy.stats import chisquare
from walking import looped

import models
from bench.stream import Stream
from defenses.tickets.kernel_betweenness import betweenness
from defenses.tickets.kernel_paths import edge_weight_products
from defenses.tickets.kernel_scores import SCORES, Score, ranked
from defenses.tickets.kernel_walks import chain, walks
from models.kernels import kernels, network, strengths
from models.tracing import NOTHING

STREAM = Stream(("test", "kernel scores"))
SMALL = st.tuples(st.sampled_from(sorted(NETS)), st.lists(st.integers(1, 3), min_size=3, max_size=3), st.floats(0.1, 1))


def prepared(kind, widths=(2, 3, 2), density=1.0, seed=0):
    """A graph of a net of some kind, and the strengths of its kernels."""
    make, layers = NETS[kind]
    model = make(list(widths), seed)
    graph = kernels(model, layers)
    return graph, strengths(graph, model, masked(model, layers, density, seed))


@given(case=SMALL, seed=st.integers(0, 999))
@settings(max_examples=20)
def test_edge_weight_products_are_those_of_all_paths(case, seed):
    graph, found = prepared(*case, seed)
    through = defaultdict(list)
    for path, strength in routes(network(graph, found)):
        for kernel in path:
            through[kernel].append(strength)
    for over, joined in (("sum", sum), ("max", max)):
        scores = edge_weight_products(graph, found, over)
        for layer, score in scores.items():
            for (o, c), one in np.ndenumerate(score):
                known = through.get((layer, (o, c)))
                assert one == (pytest.approx(np.log(joined(known)), abs=1e-9) if known else -np.inf)


@given(
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=7), factor=st.floats(1e-3, 1e3), seed=st.integers(0, 999)
)
@settings(max_examples=20)
def test_all_layers_of_a_chain_have_one_total_and_scale_together(widths, factor, seed):
    graph, found = prepared("vgg_like", widths, 1.0, seed)
    scores = {over: edge_weight_products(graph, found, over) for over in ("sum", "max")}
    totals = [logsumexp(score) for score in scores["sum"].values()]
    best = [score.max() for score in scores["max"].values()]
    assert np.ptp(totals) < 1e-9 and np.ptp(best) < 1e-9
    assert all((scores["max"][name] <= scores["sum"][name] + 1e-9).all() for name in found)
    scaled = {**found, "conv3": found["conv3"] * factor}
    for over, score in scores.items():
        for name, one in edge_weight_products(graph, scaled, over).items():
            np.testing.assert_allclose(one, score[name] + np.log(factor), atol=1e-9)


def paths_in_all(graph, found):
    """The sum over all paths: what a kernel of strength 1 behind each end would be scored."""
    net = network(graph, found)
    reached = dict.fromkeys(net.graph["starts"], 1.0)
    for node in nx.topological_sort(net):
        incoming = net.in_edges(node, data="strength")
        reached[node] = reached.get(node, 0.0) + sum(reached[one] * strength for one, _, strength in incoming)
    return sum(reached[node] for node in net.graph["ends"])


@pytest.mark.parametrize("kind", ["residual", "parallel"])
def test_a_branch_and_its_shortcut_carry_all_paths_together(kind):
    graph, found = prepared(kind, (3, 4, 5), 0.6)
    scores = edge_weight_products(graph, found)
    total = paths_in_all(graph, found)
    for first in (name for name in scores if name.endswith("conv1")):
        branch = [np.exp(logsumexp(scores[first.replace("conv1", conv)])) for conv in ("conv1", "conv2")]
        assert branch[0] == pytest.approx(branch[1], rel=1e-9)
        # The shortcut is what is left without the branch.
        without = paths_in_all(graph, {**found, first: np.zeros_like(found[first])})
        assert branch[0] + without == pytest.approx(total, rel=1e-9)
        beside = first.replace("conv1", "downsample.0")
        if beside in scores:
            assert np.exp(logsumexp(scores[beside])) == pytest.approx(without, rel=1e-9)


def test_a_kernel_is_worth_what_goes_with_it():
    graph, found = prepared("residual", (2, 3, 4), 0.7)
    scores, total = edge_weight_products(graph, found), paths_in_all(graph, found)
    for name, score in scores.items():
        o, c = np.unravel_index(score.argmax(), score.shape)
        less = found[name].copy()
        less[o, c] = 0.0
        assert total - paths_in_all(graph, {**found, name: less}) == pytest.approx(np.exp(score[o, c]), rel=1e-6)


def test_products_too_small_for_a_double_are_exact():
    """Two roads through the net, one of them 38 powers of ten weaker at each layer, down to a ratio of 1e-342."""
    model = KINDS["vgg_like"]([2] * 7)
    graph = kernels(model, [f"conv{n}" for n in range(1, 7)] + ["hidden", "head"])
    found = {name: np.diag([1.0, 1e-38])[:, : v.inputs] for name, v in graph.by_name.items()}
    found |= {"conv1": np.array([[1.0], [1e-38]]), "head": np.zeros((10, 2))}
    found["conv2"], found["head"][3, 0], found["head"][7, 1] = np.diag([1e38, 1e-38]), 1.0, 1e-38
    for over in ("sum", "max"):
        scores = edge_weight_products(graph, found, over)
        for name, score in scores.items():
            strong, weak = np.sort(score[score > -np.inf])[::-1]
            assert strong == pytest.approx(38 * np.log(10)), name
            assert weak == pytest.approx(-38 * 8 * np.log(10)), name


def fits(observed, expected):
    """Whether counts are those of a distribution, and nothing else was seen; at a level of one in 10,000."""
    assert observed[expected == 0].sum() == 0
    alive = expected > 0
    share = expected[alive] / expected[alive].sum()
    return len(share) == 1 or chisquare(observed[alive], share * observed.sum()).pvalue > 1e-4


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("kind", ["vgg_like", "residual", "parallel"])
def test_steps_follow_strengths_and_jumps_are_uniform(kind, uniform):
    graph, found = prepared(kind, (4, 5, 6), 0.04, 5)
    visited = walks(graph, found, 20_000, STREAM.child(kind, str(uniform)), uniform)
    arriving, jumps = None, 0
    for step, kernel in zip(chain(graph), visited, strict=True):
        strength = found[step.layer]
        alive = np.flatnonzero(strength.sum(0))
        if not len(alive):
            assert (kernel == NOTHING).all()
            arriving = np.full(len(kernel), NOTHING)
            continue
        after, here = np.divmod(kernel, strength.shape[1])
        assert np.isin(here, alive).all()
        for channel in np.unique(here):
            weights = (strength > 0).astype(float) if uniform else strength
            assert fits(np.bincount(after[here == channel], minlength=len(strength)), weights[:, channel])
        if arriving is None:
            # A dead channel hands its share to all the live ones.
            expected = np.isin(np.arange(strength.shape[1]), alive).astype(float)
            assert fits(np.bincount(here, minlength=strength.shape[1]), expected)
        else:
            wanted = np.where(arriving == NOTHING, NOTHING, step.entry[arriving])
            stays = np.isin(wanted, alive)
            assert np.array_equal(here[stays], wanted[stays])
            if (~stays).any():
                jumps += 1
                expected = np.isin(np.arange(strength.shape[1]), alive).astype(float)
                assert fits(np.bincount(here[~stays], minlength=strength.shape[1]), expected)
        arriving = after
    assert jumps


def test_walks_are_those_of_a_loop_over_walks():
    graph, found = prepared("residual", (3, 4, 4), 0.15, 2)
    ours = walks(graph, found, 20_000, STREAM.child("ours"))
    theirs = looped(graph, found, 4_000, STREAM.child("theirs").numpy())
    for one, other, step in zip(ours, theirs, chain(graph), strict=True):
        size = found[step.layer].size
        first, second = np.bincount(one, minlength=size), np.bincount(other, minlength=size)
        seen = first + second >= 20
        expected = first[seen] * (second[seen].sum() / first[seen].sum())
        assert seen.sum() == 1 or chisquare(second[seen], expected).pvalue > 1e-4


def test_a_walk_keeps_to_the_branch_and_passes_the_shortcut_by():
    for name, shape, skipped in (("resnet20", (3, 32, 32), ()), ("resnet18", (3, 8, 8), ("downsample",))):
        model = models.build(name, 10, shape)
        layers = [one for one in models.weights_of(model) if one not in ("conv1", "head")]
        expected = [one for one in layers if not any(part in one for part in skipped)]
        steps = chain(kernels(model, layers))
        assert [step.layer for step in steps] == expected
        assert all(np.array_equal(step.entry, np.arange(len(step.entry))) for step in steps[1:])


def test_the_last_channel_is_a_start_like_any_other():
    graph, found = prepared("plain", (3, 4, 5))
    here = walks(kernels_without_first(graph), found, 9_000, STREAM.child("last"))[0] % 3
    assert fits(np.bincount(here, minlength=3), np.ones(3))


def kernels_without_first(graph):
    model = NETS["plain"][0]([3, 4, 5])
    return kernels(model, list(graph.scored[1:]))


@given(case=SMALL, seed=st.integers(0, 999))
@settings(max_examples=25)
def test_betweenness_is_that_of_networkx(case, seed):
    graph, found = prepared(*case, seed)
    net = network(graph, found)
    expected = nx.edge_betweenness_centrality(net, normalized=False, weight=lambda u, v, edge: 1 / edge["strength"])
    result = betweenness(graph, found, 0, STREAM)
    seen = 0
    for start, end, edge in net.edges(data=True):
        if "layer" in edge:
            seen += 1
            assert result.scores[edge["layer"]][edge["kernel"]] == pytest.approx(expected[start, end], abs=1e-9)
    assert seen == sum(np.isfinite(score).sum() for score in result.scores.values())
    assert not any(error.any() for error in result.errors.values())
    assert result.sources == sum(degree > 0 for _, degree in net.out_degree())


def test_betweenness_from_pivots_is_right_in_the_mean_and_tells_its_error():
    graph, found = prepared("residual", (4, 6, 8), 0.5)
    exact = betweenness(graph, found, 0, STREAM)
    tries = [betweenness(graph, found, 20, STREAM.child(number)) for number in range(400)]
    assert {one.sources for one in tries} == {20}
    for name, score in exact.scores.items():
        alive = np.isfinite(score)
        drawn = np.stack([one.scores[name][alive] for one in tries])
        told = np.stack([one.errors[name][alive] for one in tries])
        spread = drawn.std(0, ddof=1)
        assert (np.abs(drawn.mean(0) - score[alive]) <= 5 * spread / np.sqrt(len(tries)) + 1e-9).all()
        # The mean of estimated variances is the variance.
        assert np.sqrt((told**2).mean() / (spread**2).mean()) == pytest.approx(1.0, abs=0.1)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        betweenness(graph, found, 1, STREAM)
    all_of_them = betweenness(graph, found, 10_000, STREAM)
    assert all(np.array_equal(all_of_them.scores[name], score) for name, score in exact.scores.items())


def ticket(kind, density=0.5, seed=0, widths=(4, 5, 6)):
    make, layers = NETS[kind]
    model = make(list(widths), seed)
    return model, masked(model, layers, density, seed)


def test_each_score_has_a_name():
    assert list(SCORES) == list(typing.get_args(Score))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", NETS)
def test_a_ranking_has_exactly_so_many_live_weights(kind, score):
    model, masks = ticket(kind)
    live = torch.cat([mask.flatten() for mask in masks.values()])
    total, before = int(live.sum()), None
    for count in (total, total // 2, 7, 1, 0):
        result = ranked(score, model, masks, count, STREAM)
        assert result.positions.dtype == torch.int64 and result.positions.shape == (count,)
        assert live[result.positions].all() and len(result.positions.unique()) == count
        # Fewer are the first of more.
        assert before is None or torch.equal(result.positions, before[:count])
        before = result.positions
    with pytest.raises(ValueError, match=f"at most the ticket's {total} live weights, got {total + 1}"):
        ranked(score, model, masks, total + 1, STREAM)


@pytest.mark.parametrize("score", ["ewp-sum", "ewp-max", "betweenness"])
@pytest.mark.parametrize("kind", NETS)
def test_weights_are_ranked_by_kernel_then_by_magnitude(kind, score):
    model, masks = ticket(kind, 0.2)
    graph = kernels(model, [name.removesuffix(".weight") for name in masks])
    found = strengths(graph, model, masks)
    scores = {
        "ewp-sum": lambda: edge_weight_products(graph, found, "sum"),
        "ewp-max": lambda: edge_weight_products(graph, found, "max"),
        "betweenness": lambda: betweenness(graph, found, 0, STREAM).scores,
    }[score]()
    listed, position = [], 0
    for name, mask in masks.items():
        layer = name.removesuffix(".weight")
        value, weight = graph.by_name[layer], model.get_submodule(layer).weight.detach()
        for index in np.ndindex(tuple(weight.shape)):
            if mask[index]:
                kernel = (index[0], value.columns[index[1]])
                keys = (-scores[layer][kernel].round(9), -found[layer][kernel], list(masks).index(name), kernel)
                listed.append((*keys, -float(weight[index].abs()), position))
            position += 1
    expected = [entry[-1] for entry in sorted(listed)]
    assert ranked(score, model, masks, len(listed), STREAM).positions.tolist() == expected


def test_omp_ranks_weights_by_magnitude_and_ties_by_place():
    model, masks = ticket("residual")
    weights = torch.cat([model.get_parameter(name).detach().flatten() for name in masks])
    live = torch.cat([mask.flatten() for mask in masks.values()])
    result = ranked("omp", model, masks, 50, STREAM).positions
    assert torch.equal(result, (weights.abs() * live).argsort(descending=True, stable=True)[:50])
    for name in masks:
        torch.nn.init.constant_(model.get_parameter(name), -0.5)
    assert torch.equal(ranked("omp", model, masks, 50, STREAM).positions, live.nonzero()[:50, 0])


@pytest.mark.parametrize("score", ["ewp-walk", "random-path"])
def test_kernels_of_earlier_walks_come_first(score):
    model, masks = ticket("vgg_like", 0.3)
    graph = kernels(model, [name.removesuffix(".weight") for name in masks])
    found = strengths(graph, model, masks)
    result = ranked(score, model, masks, 60, STREAM)
    visited = walks(graph, found, 1000, STREAM.child(0), score == "random-path")
    taken = set(result.positions.tolist())
    used = int(result.figures["walks"])
    expected, start = {}, 0
    for name, mask in masks.items():
        layer = name.removesuffix(".weight")
        numbers = graph.by_name[layer].kernels_of(np.arange(mask.numel()), mask.shape)
        row = [step.layer for step in chain(graph)].index(layer)
        for place in mask.flatten().nonzero()[:, 0].tolist():
            seen = np.flatnonzero(visited[row] == numbers[place])
            expected[start + place] = seen[0] if len(seen) else np.inf
        start += mask.numel()
    assert {place for place, walk in expected.items() if walk < used - 1} <= taken
    assert taken <= {place for place, walk in expected.items() if walk < used}
    assert not torch.equal(result.positions, ranked(score, model, masks, 60, STREAM.child("other")).positions)


def test_what_no_walk_can_visit_comes_by_strength():
    """The convolution of a shortcut is never on a walk; asked for everything, it stands at the end."""
    model, masks = ticket("parallel", 0.6)
    count = int(sum(mask.sum() for mask in masks.values()))
    positions = ranked("ewp-walk", model, masks, count, STREAM).positions
    beside = int(masks["layer2.0.downsample.0.weight"].sum())
    start = sum(mask.numel() for mask in list(masks.values())[:-1])
    last = positions[-beside:]
    assert list(masks)[-1] == "layer2.0.downsample.0.weight" and (last >= start).all()
    weights = model.get_parameter("layer2.0.downsample.0.weight").detach().abs().flatten()[last - start]
    assert torch.equal(weights, weights.sort(descending=True).values)


def test_positions_count_in_the_order_of_the_masks():
    model, masks = ticket("residual")
    turned = dict(reversed(masks.items()))
    for score in SCORES:
        chosen = []
        for one in (masks, turned):
            flat = torch.zeros(sum(mask.numel() for mask in one.values()), dtype=torch.bool)
            flat[ranked(score, model, one, 40, STREAM).positions] = True
            parts = flat.split([mask.numel() for mask in one.values()])
            chosen.append(dict(zip(one, parts, strict=True)))
        assert all(torch.equal(chosen[0][name], chosen[1][name]) for name in masks)


def test_a_layer_without_live_kernels_stops_no_score():
    model, masks = ticket("residual", 0.4)
    masks["layer2.0.conv1.weight"][:] = False
    count = int(sum(mask.sum() for mask in masks.values()))
    for score in SCORES:
        assert len(ranked(score, model, masks, count, STREAM).positions) == count


def test_the_layout_of_a_weight_does_not_matter():
    model, masks = ticket("residual")
    before = {score: ranked(score, model, masks, 30, STREAM).positions for score in SCORES}
    model = model.to(memory_format=torch.channels_last)
    turned = {name: mask.to(memory_format=torch.channels_last) for name, mask in masks.items()}
    for score, positions in before.items():
        assert torch.equal(ranked(score, model, turned, 30, STREAM).positions, positions)


def test_wrong_calls_are_named():
    model, masks = ticket("plain")
    with pytest.raises(ValueError, match=r"expected a score of omp, .* got 'ewp'"):
        ranked("ewp", model, masks, 1, STREAM)
    with pytest.raises(ValueError, match="expected masks of weights"):
        ranked("omp", model, {"conv1": masks["conv1.weight"]}, 1, STREAM)
    with pytest.raises(ValueError, match="expected a bool mask of shape"):
        ranked("omp", model, {"conv1.weight": masks["conv2.weight"]}, 1, STREAM)
    with pytest.raises(ValueError, match="got -1"):
        ranked("omp", model, masks, -1, STREAM)
