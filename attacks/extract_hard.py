"""Extraction from answers as an interface gives them: labels alone, or probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attacks.extraction.student import Extraction
from bench.suspect import Answer


@dataclass(frozen=True)
class ExtractHard(Extraction):
    """Train a fresh net on the protected model's top-1 labels alone, as if they were the true ones."""

    name: ClassVar[str] = "extract-hard"
    source: ClassVar[str] = "Tramèr et al. 2016, arXiv 1609.02943, section 6"
    answers: ClassVar[Answer] = "labels"


@dataclass(frozen=True)
class Retrain(Extraction):
    """Train a fresh net on the protected model's probabilities as they are given, without a temperature."""

    name: ClassVar[str] = "retrain"
    source: ClassVar[str] = "Tramèr et al. 2016, arXiv 1609.02943, section 4"
    answers: ClassVar[Answer] = "probabilities"
