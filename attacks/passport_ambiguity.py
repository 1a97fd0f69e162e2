"""Forged passports by those who hold the owner's: trained away from them, or from noise (Fan et al. 2019; PAN)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from attacks.passport_insider import PassportForgery, claimed, own_norms, require_share, turned_over
from attacks.passports.forging import around
from bench.attack import Forgery
from bench.defense import Defense
from bench.hooks import Hooks
from bench.stream import Stream
from bench.suspect import Target
from bench.trainer import AttackerTrainer
from defenses.passports import key as passport_key
from defenses.passports.branches import Branches, insert, mean_patch
from defenses.passports.scheme import PassportScheme, plan
from defenses.passports.training import sign_loss

Bottleneck = Literal["kept", "renewed", "trained"]
# Standard deviation of what is added to the owner's passports, and the norm that gradients are clipped to.
NEAR, CLIP = 1e-3, 2.0


class FreePassports(nn.Module):
    """A private branch whose passports are parameters.

    Args:
        net: both branches; its passport layers follow the parameters.
        passports: by layer, (2, *the layer's input).
    """

    def __init__(self, net: Branches, passports: Mapping[str, Tensor]) -> None:
        super().__init__()
        # Registered first, so that the parameters have their names here.
        self.values = nn.ParameterList([nn.Parameter(passports[name].clone()) for name in net.passports])
        self.bottlenecks, self.norms = nn.ModuleList(net.bottlenecks()), own_norms(net)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """What the branch answers."""
        self.follow()
        return self.net.private(x)  # type: ignore[no-any-return]

    def follow(self) -> None:
        """Let the passport layers have what the passports are now."""
        for value, (name, layer) in zip(self.values, self.net.passports.items(), strict=True):
            layer.patches = mean_patch(models.layer(self.net.public, name), value)

    def distances(self, others: list[Tensor]) -> Tensor:
        """Mean squares of the differences from other passports, of shape (2 * layers,)."""
        pairs = zip(self.values, others, strict=True)
        return torch.cat([(value - other).square().flatten(1).mean(1) for value, other in pairs])


@dataclass(frozen=True)
class PassportTraining(PassportForgery):
    """What those share that train passports."""

    def _forged(
        self,
        net: Branches,
        start: Tensor,
        target: Target,
        trainer: AttackerTrainer,
        *,
        signature: Tensor | None = None,
        bottleneck: bool = False,
    ) -> Forgery:
        """Train passports and claim them.

        Args:
            net: both branches, with the owner's passports.
            start: laid end to end; from which they are trained.
            target: whose scheme it is.
            trainer: the attacker's.
            signature: (n,) in {0, 1}, for the sign loss, beside which the distance from the owner's passports grows;
                None for cross-entropy alone.
            bottleneck: whether it is trained too.
        """
        scheme, task = target.scheme, trainer.task
        assert target.part is not None
        true = target.part[: passport_key.size(scheme.shapes(task))].to(trainer.device)
        bits = (net.raw_scales() > 0).long().cpu()
        free = FreePassports(net, scheme.passports_of(start.to(trainer.device), task))
        hooks = Hooks()
        if signature is not None:
            signs = 2.0 * signature.to(trainer.device) - 1.0
            hooks = Hooks(loss_term=_Away(signs, list(scheme.passports_of(true, task).values()), scheme))
        recipe = self.recipe(trainer, clip_norm=CLIP)
        trainable = self.free("bottlenecks") if bottleneck else self.free()
        trainer.fit(free, trainer.labelled, recipe, hooks=hooks, trainable=trainable)
        with torch.no_grad():
            free.follow()
        made = [value.detach() for value in free.values]
        forged = claimed(net, made, scheme, trainer, bits)
        cosine = F.cosine_similarity(forged.key.tensor("passports"), true.cpu(), dim=0)
        return forged._replace(figures={**forged.figures, "passport_cosine": float(cosine)})


class _Away:
    """The loss beside cross-entropy: a sign loss to other bits, and the distance from the owner's passports."""

    def __init__(self, signs: Tensor, true: list[Tensor], scheme: PassportScheme) -> None:
        self._signs, self._true = signs, true
        self._strength, self._margin = scheme.strength, scheme.margin

    def __call__(self, net: nn.Module) -> Tensor:
        """The sign loss plus one over each mean square of the differences."""
        assert isinstance(net, FreePassports)
        signs = sign_loss(net.net.raw_scales(), self._signs, self._strength, self._margin)
        return signs + (1.0 / net.distances(self._true)).sum()


@dataclass(frozen=True)
class PassportMaximise(PassportTraining):
    """Train the owner's passports away from where they are, to other bits; the rest of the branch is anybody's.

    The loss is cross-entropy, the sign loss to the bits and the sum of 1 / MSE(p, p_owner) over all passports.

    Attributes:
        flipped: share of the bits that are others, in [0, 1].
    """

    name: ClassVar[str] = "passport-maximise"
    source: ClassVar[str] = "Fan et al. 2019, NeurIPS, fake3 of the released code"
    part: ClassVar[str] = "passports"

    flipped: float = 0.5
    epochs: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self.flipped)

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme without a bottleneck: that is a secret of its own."""
        if reason := super().against(scheme):
            return reason
        if isinstance(scheme, PassportScheme) and scheme.bottlenecked():
            return f"the passports of {scheme.label} are nothing without its bottleneck: see passport-ambiguity-ii"
        return None

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Train from near the owner's passports."""
        assert target.part is not None
        scheme, task = target.scheme, trainer.task
        net = around(target.copy(), scheme.passports_of(target.part, task), scheme, task, trainer.stream)
        signature = turned_over((net.raw_scales() > 0).long().cpu(), self.flipped, trainer.stream)
        return self._forged(net, near(target.part, trainer.stream), target, trainer, signature=signature)


@dataclass(frozen=True)
class _OnBranch(PassportTraining):
    """What those share that hold the whole private branch.

    Attributes:
        bottleneck: `kept` as the owner's; `renewed`, by initialising it anew, and not trained, as in the source's
            second attack; or renewed and `trained` beside the passports.
    """

    part: ClassVar[str] = "branch"

    bottleneck: Bottleneck = "kept"

    def against(self, scheme: Defense) -> str | None:
        """Needs a scheme with a bottleneck where that is not kept."""
        if reason := super().against(scheme):
            return reason
        if self.bottleneck != "kept" and isinstance(scheme, PassportScheme) and not scheme.bottlenecked():
            return f"{scheme.label} has no bottleneck: only 'kept' means something, not {self.bottleneck!r}"
        return None

    def _opened(self, target: Target, trainer: AttackerTrainer) -> tuple[Branches, Tensor]:
        """The owner's branch in the model, with the bottleneck that is wanted; and the owner's passports."""
        assert target.part is not None
        scheme, task = target.scheme, trainer.task
        passports, private = target.part.tensor_split([passport_key.size(scheme.shapes(task))])
        net = insert(target.copy(), plan(task), scheme.form(task), scheme.passports_of(passports, task), private)
        if self.bottleneck != "kept":
            renew(net, trainer.stream)
        return net, passports


@dataclass(frozen=True)
class PassportAmbiguityOne(_OnBranch):
    """Passports from N(0, 1), trained by cross-entropy alone inside the owner's own branch."""

    name: ClassVar[str] = "passport-ambiguity-i"
    source: ClassVar[str] = "Zhang et al. 2020, NeurIPS, ambiguity attack I"

    # Noise leaves small scales and smaller gradients; a bottleneck that is trained too takes a tenth of it at most.
    learning_rate: float = 1.0

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Train from noise."""
        net, passports = self._opened(target, trainer)
        noise = normal(passports, trainer.stream)
        return self._forged(net, noise, target, trainer, bottleneck=self.bottleneck == "trained")


@dataclass(frozen=True)
class PassportAmbiguityTwo(_OnBranch):
    """The owner's passports, trained away from where they are to other bits, as by `passport-maximise`.

    Attributes:
        flipped: share of the bits that are others, in [0, 1].
    """

    name: ClassVar[str] = "passport-ambiguity-ii"
    source: ClassVar[str] = "Zhang et al. 2020, NeurIPS, ambiguity attack II"

    flipped: float = 0.5
    epochs: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share(self.flipped)

    def forge(self, target: Target, trainer: AttackerTrainer) -> Forgery:
        """Train from near the owner's passports."""
        net, passports = self._opened(target, trainer)
        signature = turned_over((net.raw_scales() > 0).long().cpu(), self.flipped, trainer.stream)
        start, training = near(passports, trainer.stream), self.bottleneck == "trained"
        return self._forged(net, start, target, trainer, signature=signature, bottleneck=training)


def normal(like: Tensor, stream: Stream) -> Tensor:
    """Numbers from N(0, 1), as many as in `like` (n,); float32."""
    return torch.from_numpy(stream.child("noise").numpy().standard_normal(len(like), dtype="float32"))


def near(passports: Tensor, stream: Stream) -> Tensor:
    """Passports a thousandth of a standard normal away from given ones, (n,)."""
    return passports.cpu() + NEAR * normal(passports, stream)


def renew(net: Branches, stream: Stream) -> None:
    """Initialise all bottlenecks anew in place, by Glorot's normal numbers, as the source does."""
    chance = stream.child("renewed").torch()
    for mlp in net.bottlenecks():
        for weight in mlp.parameters():
            fresh = nn.init.xavier_normal_(torch.empty(weight.shape), generator=chance)
            with torch.no_grad():
                weight.copy_(fresh)
