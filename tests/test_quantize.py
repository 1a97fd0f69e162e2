"""Quantization: which levels weights take, and that the libraries' own take the same."""

import copy
import warnings

import nets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attacks.quantize
import models
from attacks.fold_normalization import folded
from attacks.quantization.int8 import dequantized, integer_model
from attacks.quantize import Quantize, QuantizeInt8, quantized
from bench.bundle import Bundle
from bench.planning import cells, suite
from bench.suspect import Target, predict
from models.compression import on_grids
from tests.planned import Runner

SHAPES = {"vgg8": (1, 8, 8), "resnet8": (1, 8, 8), "lenet5": (1, 16, 16), "pointnet": (3, 12)}


@pytest.fixture(scope="module")
def protected():
    return nets.lived_in(models.build("vgg8", 10, (1, 8, 8)))


def attacked(attack, model, attacker_for):
    target = Target(model, "white-box")
    trainer = attacker_for(attack, target)
    made = [(strength, copy.deepcopy(one)) for strength, one in attack.run(target, trainer)]
    return made, trainer, target


def others(model):
    """All that is neither the weight of a convolution nor of a linear layer."""
    chosen = {f"{name}.weight" for name in models.weights_of(model)}
    return {name: value for name, value in model.state_dict().items() if name not in chosen}


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("mode", ["symmetric", "affine"])
def test_weights_take_the_levels_alone(granularity, mode, protected, attacker_for):
    attack = Quantize(granularity=granularity, mode=mode)
    before = copy.deepcopy(protected.state_dict())
    made, trainer, target = attacked(attack, protected, attacker_for)
    assert (trainer.inputs_used, trainer.labels_used, target.queries) == (0, 0, 0)
    assert tuple(strength for strength, _ in made) == attack.bits and len(made) == attack.surrogates()
    for bits, model in made:
        assert all(torch.equal(value, before[name]) for name, value in others(model).items())
        for name, weight in models.weights_of(model).items():
            original = before[f"{name}.weight"]
            groups = zip(weight.detach(), original, strict=True) if granularity == "channel" else [(weight, original)]
            for after, whole in groups:
                scale = scale_of(whole, bits, mode)
                levels = (after / scale).round()
                assert torch.equal(after.detach(), levels * scale)
                # So many levels, one of them zero, no further apart than their number allows.
                assert levels.max() - levels.min() <= 2**bits - 1
                assert len(after.unique()) <= 2**bits
                inside = (whole > after.min()) & (whole < after.max())
                assert ((after - whole).abs()[inside] <= scale * (0.5 + 1e-4)).all()
                # Beyond the last level by half a step, and by the rounding of the zero point.
                assert (after - whole).abs().max() <= scale * 1.001
    assert all(torch.equal(value, before[name]) for name, value in protected.state_dict().items())


def scale_of(whole, bits, mode):
    if mode == "symmetric":
        return whole.abs().max() / ((2**bits - 1) / 2)
    return (whole.max().clamp(min=0) - whole.min().clamp(max=0)) / (2**bits - 1)


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    bits=st.integers(2, 8),
    granularity=st.sampled_from(["channel", "tensor"]),
    mode=st.sampled_from(["symmetric", "affine"]),
)
@settings(max_examples=100)
def test_zero_stays_zero_and_nothing_becomes_infinite(values, bits, granularity, mode):
    weight = torch.tensor([values, [0.0] * len(values), [-value for value in values]])
    made = quantized(weight, bits, granularity, mode)
    assert torch.isfinite(made).all()
    assert not made[weight == 0].any()


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("mode", ["symmetric", "affine"])
def test_the_same_as_pytorchs_observers(granularity, mode):
    observer = pytest.importorskip("torch.ao.quantization.observer", reason="this PyTorch has no observers any more")
    channel = granularity == "channel"
    scheme = getattr(torch, f"per_{granularity}_{mode}")
    kind = observer.PerChannelMinMaxObserver if channel else observer.MinMaxObserver
    weight = torch.randn(16, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    for bits in range(2, 9):
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            watching = kind(dtype=torch.qint8, qscheme=scheme, quant_min=lowest, quant_max=highest)
            watching(weight)
            scale, zero = watching.calculate_qparams()
        if channel:
            theirs = torch.fake_quantize_per_channel_affine(weight, scale, zero.int(), 0, lowest, highest)
        else:
            theirs = torch.fake_quantize_per_tensor_affine(weight, float(scale), int(zero), lowest, highest)
        torch.testing.assert_close(quantized(weight, bits, granularity, mode), theirs, rtol=1e-6, atol=0)


def test_the_same_as_torchao():
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    net = nets.lived_in(models.build("vgg8", 10, (1, 8, 8)))
    # Of a convolution the library takes a scale for each place of each filter; as a matrix it has one row a filter.
    rows = {name: weight.detach().flatten(1) for name, weight in models.weights_of(net).items()}
    for bits in (2, 3, 4, 8):
        theirs = torch.nn.ModuleDict({name: torch.nn.Linear(*reversed(one.shape), False) for name, one in rows.items()})
        for name, one in rows.items():
            theirs[name].weight.data.copy_(one)
        config = torchao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=torchao.PerAxis(0))
        torchao.quantize_(theirs, config)
        for name, one in rows.items():
            ours, found = quantized(one, bits, "channel", "symmetric"), theirs[name].weight.dequantize()
            step = one.abs().amax(1, keepdim=True) / ((2**bits - 1) / 2)
            apart = (ours - found).abs() / step
            # What lies halfway between two levels, as the largest weight does, may go either way.
            halfway = (one.abs() / step % 1 - 0.5).abs() < 1e-3
            assert (apart[~halfway] < 1e-3).all() and (apart < 1.001).all()


@pytest.mark.parametrize("bits", [(), (9,), (1,), (4, 8), (4, 4)])
def test_bits_are_checked(bits):
    with pytest.raises(ValueError, match="bits from 8 to 2"):
        Quantize(bits=bits)


# Where the library's own model can be made at all.
int8 = pytest.mark.skipif(
    "x86" not in torch.backends.quantized.supported_engines, reason="this PyTorch has no int8 kernels for x86"
)


@int8
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_integer_models_weights_are_ours_of_eight_bits_after_folding(name):
    net = nets.lived_in(models.build(name, 10, SHAPES[name]))
    before = copy.deepcopy(net.state_dict())
    inputs = nets.inputs(net, 64)
    integers, answers = integer_model(net, inputs, "x86")
    made, plain = dequantized(net, integers), copy.deepcopy(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    folded(plain)
    # Behind dropout the library leaves a normalization in floats.
    for key in ("hidden2", "norm5") if name == "pointnet" else ():
        plain.set_submodule(key, copy.deepcopy(models.layer(net, key)))
    kinds = {key: type(module) for key, module in made.named_modules()}
    assert kinds == {key: type(module) for key, module in plain.named_modules()}
    for key, weight in models.weights_of(plain).items():
        expected = quantized(weight, 8, "channel", "symmetric")
        found = models.weights_of(made)[key]
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-7)
        bias = models.layer(plain, key).bias
        torch.testing.assert_close(models.layer(made, key).bias, bias, rtol=1e-5, atol=1e-6)
    again = Bundle.from_bytes(Bundle(models={"0": made}).to_bytes()).models["0"]
    assert torch.equal(predict(again, inputs), predict(made, inputs))
    # What is stored gives back the library's integers and scales.
    known = dict(integers.named_modules())
    for key, weight in models.weights_of(again).items():
        theirs, rows = known[key].weight(), weight.detach().flatten(1)
        whole = theirs.int_repr().flatten(1).long()
        common = np.gcd.reduce(whole.abs().numpy(), axis=1, keepdims=True)
        assert torch.equal(on_grids(rows) * torch.from_numpy(common), whole)
        scales = theirs.q_per_channel_scales().float()
        torch.testing.assert_close(rows.abs().amax(1) / whole.abs().amax(1), scales, rtol=1e-6, atol=0)
    # What its activations lose is little, and not nothing: the integer model is another one.
    gap = (predict(made, inputs) - answers).abs().max() / answers.abs().max()
    assert 0 < gap < 0.2


@int8
def test_answers_are_taken_in_the_job_that_makes_the_integer_model(parts, monkeypatch):
    text = {
        "name": "small",
        "tasks": [{"dataset": "digits", "recipe": {"epochs": 1}}],
        "defenses": [{"name": "none"}],
        "attacks": [{"name": "none"}, {"name": "quantize-int8"}],
    }
    plan, made = cells.make(suite.parse(text, "here", "here")), []

    def watched(*given):
        made.append(integer_model(*given))
        return made[-1]

    monkeypatch.setattr(attacks.quantize, "integer_model", watched)
    attack = next(job for job in plan.jobs.values() if job.kind == "attack" and "quantize-int8" in job.label)
    outcome = Runner(plan.jobs)(attack.id)
    ((_, answers),) = made
    # The surrogate alone leaves the job; what the integer model said is in its figures.
    assert list(outcome.products) == ["public"]
    surrogate = Bundle.from_bytes(outcome.products["public"]).models["0"]
    agreement = (predict(surrogate, parts.attacker.x).argmax(1) == answers.argmax(1)).double().mean()
    assert outcome.result["figures"] == [{"agreement": float(agreement)}]


@int8
def test_noted_is_how_often_the_surrogate_says_what_the_integer_model_says(full_clean, attacker_for):
    attack, before = QuantizeInt8(share=0.5), torch.backends.quantized.engine
    ((strength, model),), trainer, target = attacked(attack, full_clean, attacker_for)
    agreement = trainer.noted()["agreement"]
    assert strength == 8 and trainer.noted() == {}
    assert (trainer.inputs_used, trainer.labels_used, target.queries) == (150, 0, 0)
    assert torch.backends.quantized.engine == before
    inputs = trainer.first_inputs(0.5)
    _, answers = integer_model(copy.deepcopy(full_clean).eval(), inputs, "x86")
    assert agreement == (predict(model, inputs).argmax(1) == answers.argmax(1)).double().mean()
    assert agreement > 0.95
    # It is the protected model's function nearly.
    assert (predict(model, inputs).argmax(1) == predict(full_clean, inputs).argmax(1)).double().mean() > 0.95


def test_what_this_pytorch_cannot_do_is_told(protected, monkeypatch):
    inputs = nets.inputs(protected, 4)
    with pytest.raises(RuntimeError, match=r"expected an engine of this PyTorch .*got 'abacus'"):
        integer_model(protected, inputs, "abacus")
    monkeypatch.setitem(__import__("sys").modules, "torch.ao.quantization.quantize_fx", None)
    with pytest.raises(RuntimeError, match=r"expected a PyTorch with torch\.ao\.quantization\.quantize_fx, got 2"):
        integer_model(protected, inputs, "x86")
    # A model whose layers are floats still.
    with pytest.raises(RuntimeError, match="expected the library to quantize layer 'conv1'"):
        dequantized(protected, protected)
    with pytest.raises(ValueError, match="share"):
        QuantizeInt8(share=0.0)
