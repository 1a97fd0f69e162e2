"""Forged projections: exact, and as far from a draw as the margin asks for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import lived_in
from scipy import linalg

import models
from attacks.linear_forgery import LeastNorm, RowSignFlip
from attacks.trigger_forgery import nothing
from bench.stream import Stream
from bench.suspect import Target
from bench.trainer import AttackerTrainer
from defenses.constant_weight_code import ConstantWeightCode
from defenses.dm_qim import DmQim
from defenses.uchida import Uchida


def forged(attack, scheme, task, seed):
    model = lived_in(models.build(task.model, task.classes, task.shape), seed)
    target = Target(model, "white-box", scheme=scheme)
    trainer = AttackerTrainer(task, torch.empty(0), nothing(task), Stream((str(seed),)), target=target, data="none")
    made = attack.forge(target, trainer)
    drawn = scheme.draw(task, trainer.stream.child("key", scheme.name))
    assert torch.equal(made.key.tensor("message"), drawn.tensor("message"))
    assert made.key.tensor("projection").dtype == torch.float32
    evidence = scheme.verify(target, made.key, trainer)
    return made, drawn.tensor("projection"), made.key.tensor("projection"), scheme.carried(drawn, model), evidence


@given(seed=st.integers(0, 10_000), bits=st.integers(20, 200), projection=st.sampled_from(["random", "diff"]))
@settings(max_examples=20)
def test_turned_rows_are_the_drawn_ones_up_to_their_sign(task, seed, bits, projection):
    scheme = Uchida(bits=bits, projection=projection)
    made, drawn, rows, _, evidence = forged(RowSignFlip(), scheme, task, seed)
    assert evidence.log10_p == pytest.approx(scheme.capacity(task))
    kept, turned = (rows == drawn).all(1), (rows == -drawn).all(1)
    assert bool((kept | turned).all())
    assert made.figures["bit_error"] == 0.0
    assert ("row_norm_z" in made.figures) == (projection == "random")


@given(seed=st.integers(0, 10_000), margin=st.floats(0.01, 20.0))
@settings(max_examples=20)
def test_each_row_gets_the_margin_by_the_least_change(task, seed, margin):
    scheme = Uchida(bits=24)
    made, drawn, rows, vector, evidence = forged(LeastNorm(margin=margin), scheme, task, seed)
    assert evidence.log10_p == pytest.approx(scheme.capacity(task))
    w = vector.double()
    margins = (rows.double() @ w).abs() / w.norm()
    assert torch.allclose(margins, torch.full_like(margins, margin), rtol=1e-3, atol=1e-4)
    assert made.figures["margin"] == pytest.approx(margin, rel=1e-3)
    signs = 2.0 * made.key.tensor("message").double() - 1.0
    wanted = signs * margin * w.norm() - drawn.double() @ w
    # scipy's least-norm solution of one equation a row.
    least, *_ = linalg.lstsq(w[None].numpy(), wanted[None].numpy())
    assert torch.allclose(rows.double() - drawn.double(), torch.from_numpy(least.T), atol=1e-4)


def test_small_margins_look_drawn_and_large_ones_do_not(task):
    told = {m: forged(LeastNorm(margin=m), Uchida(bits=256), task, 1)[0].figures for m in (1.0, 20.0)}
    turned = forged(RowSignFlip(), Uchida(bits=256), task, 1)[0].figures
    assert abs(told[1.0]["row_norm_z"]) < 4
    assert abs(turned["row_norm_z"]) < 4
    assert min(told[1.0]["log10_p_normal"], turned["log10_p_normal"]) > -4
    assert told[20.0]["row_norm_z"] > 8
    assert told[20.0]["log10_p_normal"] < -6


def test_they_are_tried_where_rows_may_be_so():
    assert RowSignFlip().against(Uchida()) is RowSignFlip().against(Uchida(projection="diff", bits=8)) is None
    assert "would break" in RowSignFlip().against(Uchida(projection="direct"))
    assert LeastNorm().against(Uchida()) is None
    assert "would break" in LeastNorm().against(Uchida(projection="diff", bits=8))
    for scheme in (DmQim(), ConstantWeightCode()):
        assert "kind positions" in LeastNorm().against(scheme)


def test_a_margin_must_be_one(task):
    for margin in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="margin > 0"):
            LeastNorm(margin=margin)
    scheme, model = Uchida(), models.build(task.model, task.classes, task.shape)
    model.conv6.weight.data.zero_()
    target = Target(model, "white-box", scheme=scheme)
    trainer = AttackerTrainer(task, torch.empty(0), nothing(task), Stream(("0",)), target=target, data="none")
    with pytest.raises(ValueError, match="not zero"):
        LeastNorm().forge(target, trainer)
