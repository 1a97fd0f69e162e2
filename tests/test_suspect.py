import pytest
import torch

import models
from bench.errors import AccessError, Unreadable
from bench.stage import CleanModel, TargetAnswers
from bench.suspect import ANSWERS, Suspect, Target, predict, reduced


@pytest.fixture
def model():
    return models.build("vgg8", 10, (1, 8, 8))


def test_every_query_is_counted(model):
    suspect = Suspect.of(model, "black-box")
    x = torch.rand(5, 1, 8, 8)
    assert suspect.answers(x).shape == (5,)
    assert suspect.answers(x, "probabilities").sum(1).allclose(torch.ones(5))
    assert torch.equal(suspect.answers(x, "logits"), predict(model, x))
    assert suspect.queries == 15


def test_access_is_held_to_what_was_declared(model):
    with pytest.raises(AccessError, match="black-box"):
        _ = Suspect.of(model, "black-box").module
    with pytest.raises(AccessError, match="'none'"):
        Suspect.of(model, "none").answers(torch.rand(1, 1, 8, 8))
    with pytest.raises(Unreadable, match="only be queried"):
        _ = Suspect(lambda x: x).module
    assert Suspect.of(model).module is model


def test_a_target_tells_no_more_than_the_attack_declared(model):
    x = torch.rand(4, 1, 8, 8)
    for number, most in enumerate(ANSWERS):
        target = Target(model, "black-box", most=most)
        for kind in ANSWERS[: number + 1]:
            assert torch.equal(target.answers(x, kind), Suspect.of(model).answers(x, kind))
        for kind in ANSWERS[number + 1 :]:
            with pytest.raises(AccessError, match=f"asked for {kind} with declared answers '{most}'"):
                target.answers(x, kind)
        assert target.queries == 4 * (number + 1)


def test_the_first_of_equal_logits_is_the_label():
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 3.0, 3.0]])
    assert reduced(logits, "labels").tolist() == [0, 1, 0]
    assert torch.equal(reduced(logits, "probabilities"), logits.softmax(1))
    assert reduced(logits, "logits") is logits


def test_answers_can_be_changed_at_query_time(model):
    shy = Suspect(lambda x: predict(model, x).round(), None, "black-box")
    answers = shy.answers(torch.rand(2, 1, 8, 8), "logits")
    assert torch.equal(answers, answers.round())


def test_predicting_keeps_the_mode_and_does_not_depend_on_the_batch(model):
    model.train()
    x = torch.rand(50, 1, 8, 8)
    torch.testing.assert_close(predict(model, x, batch=7), predict(model, x))
    assert model.training
    assert model.norm1.num_batches_tracked == 0


def test_a_target_is_copied_for_the_attacker(model):
    target = Target(model, "white-box")
    copied = target.copy()
    with torch.no_grad():
        copied.conv1.weight.zero_()
    assert model.conv1.weight.any()


def test_undeclared_data_and_stages_are_refused(task, parts, owner, attacker_for, model):
    from attacks.magnitude_prune import MagnitudePrune
    from bench.stream import Stream
    from bench.trainer import AttackerTrainer, OwnerTrainer

    trainer = attacker_for(MagnitudePrune())
    with pytest.raises(AccessError, match="inputs with declared data 'none'"):
        _ = trainer.inputs
    with pytest.raises(AccessError, match="labels with declared data 'none'"):
        _ = trainer.labelled
    strict = OwnerTrainer(task, parts.train, parts.heldout, Stream.root(0), stages={})
    with pytest.raises(AccessError, match=r"clean-model.*not declared"):
        strict.clean()
    lazy = AttackerTrainer(
        task, parts.attacker.x, parts.attacker.take(100), Stream.root(0), target=Target(model, "black-box")
    )
    assert lazy.stage(TargetAnswers()).tensors["logits"].shape == (300, 10)
    assert (lazy.inputs_used, lazy.labels_used) == (300, 0)
    first = owner.stage(CleanModel()).models["model"]
    assert owner.stage(CleanModel()).models["model"] is first
    assert owner.clean() is not first


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_a_want_of_memory_is_no_mark_removed(message):
    """It is a failure that is tried again, whatever guise it comes in."""
    from bench.errors import Unreadable, is_shortage

    def answer(x):
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=r"(?i)alloc|memory") as caught:
        Suspect(answer).answers(torch.zeros(1, 1))
    assert not isinstance(caught.value, Unreadable)
    assert is_shortage("RuntimeError", message)


def test_a_wrong_shape_is_the_suspects_matter():
    from bench.errors import Unreadable, is_shortage

    with pytest.raises(Unreadable) as caught:
        Suspect.of(torch.nn.Linear(3, 2)).answers(torch.zeros(1, 5))
    assert not is_shortage("RuntimeError", str(caught.value))
