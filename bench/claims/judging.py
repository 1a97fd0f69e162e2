"""Judging a suspect by an opened commitment: what the evidence says, and what the key file says of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from bench import data
from bench.claims.encoding import model_digest
from bench.claims.opening import Commitment, Opening
from bench.data import parts
from bench.errors import InputError, Unreadable, is_ours
from bench.evidence import Evidence
from bench.key import Value
from bench.split import Split
from bench.stream import Stream
from bench.suspect import Suspect
from bench.task import PartName, Task
from bench.trainer import OwnerTrainer, Trainer


@dataclass(frozen=True)
class Verdict:
    """What a judge finds.

    Attributes:
        evidence: of the key in the suspect.
        alpha: rate of false claims that the judge allows.
        opens: whether the key file opens the commitment; None where there was none.
        committed_model: whether the suspect is the protected model bit for bit.
        derived: whether the key follows from seed and owner; None where it has no seed.
        capacity: the least `log10_p` that the scheme can reach.
    """

    evidence: Evidence
    alpha: float
    opens: bool | None
    committed_model: bool
    derived: bool | None
    capacity: float

    @property
    def found(self) -> bool:
        """Whether the evidence alone is a claim at alpha."""
        return self.evidence.log10_p <= math.log10(self.alpha)

    @property
    def holds(self) -> bool:
        """Whether the claim holds: the evidence does, and neither commitment nor seed contradicts the key."""
        return self.found and self.opens is not False and self.derived is not False


class Judge(OwnerTrainer):
    """What a scheme's `verify` takes, for a judge: the owner's data is read when a scheme first asks for it.

    Many schemes need none of it, and then a judge needs no copy.
    """

    def __init__(self, opening: Opening, task: Task, device: torch.device | str) -> None:
        # The same at each judging of a claim, and another for each claim.
        Trainer.__init__(self, task, Stream(("judge", opening.digest)), device)
        self._digests: Mapping[str, str] = opening.statement["data"]
        self._parts: dict[PartName, Split] = {}

    @property
    def train(self) -> Split:  # type: ignore[override]
        """As for any owner; InputError where the data is missing, or other data than was committed to."""
        return self._part("train")

    @property
    def heldout(self) -> Split:  # type: ignore[override]
        """Likewise."""
        return self._part("heldout")

    def _part(self, name: PartName) -> Split:
        if name not in self._parts:
            expected = self._digests.get(name)
            if expected is not None:
                _require_same(self.task, name, expected)
            self._parts[name] = data.load(self.task, [name])[name].to(self.device)
        return self._parts[name]


def judge(suspect: nn.Module, opening: Opening, trainer: OwnerTrainer) -> Evidence:
    """The evidence of an opening's key in a suspect.

    Raises:
        InputError: the key has not the form of what the scheme draws, the scheme breaks on it, or data is missing.
    """
    scheme = opening.scheme
    _require_form(opening)
    for name, tensor in suspect.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return Evidence.unreadable(f"{name} of the suspect holds NaN or infinity")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trainer.stream.seed)
            return scheme.verify(Suspect.of(suspect.to(trainer.device), scheme.access_used()), opening.key, trainer)
    except Unreadable as error:
        return Evidence.unreadable(str(error))
    except InputError:
        raise
    # Keys and suspects that somebody made may break a scheme anywhere; that is no evidence, and no crash either.
    except Exception as error:
        if is_ours(str(error)):
            raise
        told = f"{type(error).__name__}: {error}"
        raise InputError(f"key file: {scheme.label} cannot judge this suspect by this key: {told}") from error


def verify(
    suspect: nn.Module,
    opening: Opening,
    commitment: Commitment | None = None,
    alpha: float = 1e-6,
    trainer: OwnerTrainer | None = None,
    device: torch.device | str = "cpu",
) -> Verdict:
    """Judge a suspect by an opened commitment.

    Args:
        suspect: any model; it stays as it is.
        opening: of `bench.claims.files.read_opening`, or as `commit` gave it.
        commitment: what the owner had published; None to judge the evidence alone.
        alpha: rate of false claims, in (0, 1).
        trainer: with the owner's data; None to read it where the opening says.
        device: for the default trainer.

    Raises:
        InputError: alpha out of its range, or as for `judge`.
    """
    if not 0.0 < alpha < 1.0:
        raise InputError(f"alpha: expected a rate in (0, 1), got {alpha:g}")
    return Verdict(
        evidence=judge(suspect, opening, trainer or Judge(opening, opening.task, device)),
        alpha=alpha,
        opens=None if commitment is None else commitment.digest == opening.digest,
        committed_model=is_committed(suspect, opening),
        derived=opening.derived,
        capacity=opening.scheme.capacity(opening.task),
    )


def is_committed(model: nn.Module, opening: Opening) -> bool:
    """Whether a model is the one that was committed to, bit for bit."""
    try:
        return model_digest(model) == str(opening.statement["model"])
    except ValueError:
        return False


def _require_form(opening: Opening) -> None:
    """Refuse a key whose drawn part is not what the scheme draws: more bits than it has say more than they should."""
    fresh = opening.scheme.draw(opening.task, Stream(("form",)))
    expected, got = _form(fresh.drawn), _form(opening.key.drawn)
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise InputError(
                f"key file: expected the drawn part {name!r} of {opening.scheme.label} as "
                f"{expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}"
            )


def _form(drawn: Mapping[str, Value]) -> dict[str, str]:
    return {
        name: f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        for name, value in drawn.items()
    }


def _require_same(task: Task, part: PartName, expected: str) -> None:
    found = parts.digests(data.source(task.info), task.info, task.sizes, [part])[part]
    if found != expected:
        raise InputError(
            f"data: expected the owner's {part} part with digest {expected}, as in the key file, got {found}"
        )
