"""Claims outside a benchmark: commitments to a key, judging a suspect file by one, and two that contradict."""

from __future__ import annotations

from bench.claims.commitment import Claim, commit, write
from bench.claims.dispute import Pairs, Ruling, Standing, resolve
from bench.claims.files import read_commitment, read_model, read_opening, save_model
from bench.claims.judging import Judge, Verdict, judge, verify
from bench.claims.opening import Commitment, Opening

__all__ = [
    "Claim",
    "Commitment",
    "Judge",
    "Opening",
    "Pairs",
    "Ruling",
    "Standing",
    "Verdict",
    "commit",
    "judge",
    "read_commitment",
    "read_model",
    "read_opening",
    "resolve",
    "save_model",
    "verify",
    "write",
]
