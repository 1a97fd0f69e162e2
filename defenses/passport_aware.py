"""Passport-aware normalization (Zhang et al. 2020, NeurIPS): a branch with statistics and a bottleneck of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from defenses.passports.two_branches import TwoBranches


@dataclass(frozen=True)
class PassportAware(TwoBranches):
    """Passports through a bottleneck, and statistics for each branch, so that the public one loses nothing."""

    name: ClassVar[str] = "passport-aware"
    source: ClassVar[str] = "Zhang et al. 2020, NeurIPS, Passport-aware Normalization"
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("alexnet", "alexnet-small"), ("conv1", "conv2", "conv3", "conv4", "conv5")),
        "resnet18": ("conv1", "layer1", "layer2", "layer3", "layer4"),
        **dict.fromkeys(("pointnet", "pointnet-basic"), ("conv1", "conv2", "conv3", "hidden1", "hidden2", "head")),
    }
