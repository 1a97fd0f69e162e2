"""The columns of the Parquet files, their types, and the version that they share."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

VERSION = 5

# What a judge asks of a forger: evidence alone; that the key was committed to before the model was published; that it
# follows from a seed and the forger's name as well. What holds under one of these holds under those before it.
Protocol = Literal["evidence", "committed", "derived"]
# Column of the matrix: whether a forger's claim holds. Null where no forger's key was judged, and where the evidence is
# a claim and the record does not say what the protocol asks.
FORGED: dict[Protocol, str] = {
    "evidence": "forged",
    "committed": "forged_committed",
    "derived": "forged_derived",
}
# Column of the leaderboard: how many forgeries end in no claim that holds; null where that is unknown of one.
WITHSTOOD: dict[Protocol, str] = {
    "evidence": "forgeries_withstood",
    "committed": "forgeries_withstood_committed",
    "derived": "forgeries_withstood_derived",
}

# Columns of the matrix, and figures of records: how many times less a copy takes to store than the protected model's
# weights as floats, the values alone, and with what says where they are. In the matrix of copies within the budget.
COMPRESSION = ("compression", "compression_indexed")

_TEXT, _NUMBER, _COUNT, _FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_TIME = pa.timestamp("us", tz="UTC")

RECORDS = pa.schema(
    [
        ("run_id", _TEXT),
        ("job_id", _TEXT),
        ("parent_id", _TEXT),
        ("suite", _TEXT),
        ("task", _TEXT),
        ("dataset", _TEXT),
        ("model", _TEXT),
        ("seed", _COUNT),
        ("defense", _TEXT),
        ("defense_params", _TEXT),
        ("attack", _TEXT),
        ("attack_params", _TEXT),
        ("attack_kind", _TEXT),
        ("attack_class", _TEXT),
        ("knowledge", _TEXT),
        ("judged_key", _TEXT),
        ("time_model", _TEXT),
        ("derived", _FLAG),
        ("strength", _NUMBER),
        ("strength_unit", _TEXT),
        ("accuracy_clean", _NUMBER),
        ("accuracy_protected", _NUMBER),
        ("accuracy_reference", _NUMBER),
        ("accuracy", _NUMBER),
        ("statistic", _NUMBER),
        ("log10_p", _NUMBER),
        ("claim", _FLAG),
        ("figures", pa.map_(_TEXT, _NUMBER)),
        ("texts", pa.map_(_TEXT, _TEXT)),
        ("data_inputs", _COUNT),
        ("data_labels", _COUNT),
        ("data_digest", _TEXT),
        ("queries", _COUNT),
        ("seconds_protect", _NUMBER),
        ("seconds", _NUMBER),
        ("seconds_verify", _NUMBER),
        ("capacity_log10_p", _NUMBER),
        ("defense_family", _TEXT),
        ("defense_access", _TEXT),
        ("attack_family", _TEXT),
        ("attack_access", _TEXT),
        ("peak_memory_mb", _NUMBER),
        ("device", _TEXT),
        ("threads", _COUNT),
        ("versions", pa.map_(_TEXT, _TEXT)),
        ("source_digest", _TEXT),
        ("status", _TEXT),
        ("error_type", _TEXT),
        ("error", _TEXT),
        ("traceback", _TEXT),
        ("created_at", _TIME),
    ]
)

DECOYS = pa.schema(
    [
        ("run_id", _TEXT),
        ("job_id", _TEXT),
        ("task", _TEXT),
        ("defense", _TEXT),
        ("defense_params", _TEXT),
        ("seed", _COUNT),
        ("decoy", _COUNT),
        ("statistic", _NUMBER),
        ("log10_p", _NUMBER),
    ]
)

# Prices, costs and ceilings are points of accuracy; accuracies are fractions. A censored price is a bound.
LEADERBOARD = pa.schema(
    [
        ("task", _TEXT),
        ("dataset", _TEXT),
        ("model", _TEXT),
        ("defense", _TEXT),
        ("defense_params", _TEXT),
        ("defense_label", _TEXT),
        ("defense_family", _TEXT),
        ("defense_access", _TEXT),
        ("reference", _FLAG),
        ("verdict", _TEXT),
        ("worth", _NUMBER),
        ("seeds", _COUNT),
        ("accuracy_clean", _NUMBER),
        ("accuracy_protected", _NUMBER),
        ("accuracy_cost", _NUMBER),
        ("accuracy_cost_low", _NUMBER),
        ("accuracy_cost_high", _NUMBER),
        ("log10_p", _NUMBER),
        ("claims", _COUNT),
        ("survived", _COUNT),
        ("survived_any", _COUNT),
        ("attacks", _COUNT),
        ("price_in_place", _NUMBER),
        ("price_in_place_censored", _FLAG),
        ("price_reparametrisation", _NUMBER),
        ("price_reparametrisation_censored", _FLAG),
        ("price_extraction", _NUMBER),
        ("price_extraction_censored", _FLAG),
        ("price", _NUMBER),
        ("price_censored", _FLAG),
        ("price_attack", _TEXT),
        ("ceiling", _NUMBER),
        ("forgeries_withstood", _COUNT),
        ("forgeries_withstood_committed", _COUNT),
        ("forgeries_withstood_derived", _COUNT),
        ("forgeries", _COUNT),
        ("false_claims", _COUNT),
        ("controls", _COUNT),
        ("decoy_share_1e-2", _NUMBER),
        ("capacity_log10_p", _NUMBER),
        ("seconds_protect", _NUMBER),
        ("protect_ratio", _NUMBER),
        ("seconds_verify", _NUMBER),
        ("insider_survived", _COUNT),
        ("insider_attacks", _COUNT),
        ("insider_price", _NUMBER),
        ("insider_price_censored", _FLAG),
        ("insider_price_attack", _TEXT),
        ("cells_ok", _COUNT),
        ("cells_failed", _COUNT),
        ("cells_not_applicable", _COUNT),
        ("error", _TEXT),
        ("devices", pa.list_(_TEXT)),
        ("mixed_devices", _FLAG),
        ("mixed_versions", _FLAG),
        ("calibration", _TEXT),
    ]
)

MATRIX = pa.schema(
    [
        ("task", _TEXT),
        ("dataset", _TEXT),
        ("model", _TEXT),
        ("defense", _TEXT),
        ("defense_params", _TEXT),
        ("defense_label", _TEXT),
        ("reference", _FLAG),
        ("attack", _TEXT),
        ("attack_params", _TEXT),
        ("attack_label", _TEXT),
        ("attack_kind", _TEXT),
        ("attack_class", _TEXT),
        ("attack_access", _TEXT),
        ("knowledge", _TEXT),
        ("yardstick", _FLAG),
        ("judged_key", _TEXT),
        ("time_model", _TEXT),
        ("verdict", _TEXT),
        ("forged", _FLAG),
        ("forged_committed", _FLAG),
        ("forged_derived", _FLAG),
        ("price", _NUMBER),
        ("price_censored", _FLAG),
        ("price_low", _NUMBER),
        ("price_high", _NUMBER),
        ("ceiling", _NUMBER),
        ("survived", _FLAG),
        ("survived_any", _FLAG),
        ("strength", _NUMBER),
        ("strength_unit", _TEXT),
        ("least_loss", _NUMBER),
        *((name, _NUMBER) for name in COMPRESSION),
        ("log10_p_min", _NUMBER),
        ("log10_p_median", _NUMBER),
        ("log10_p_strongest", _NUMBER),
        ("claims", _COUNT),
        ("judged", _COUNT),
        ("seconds", _NUMBER),
        ("seconds_ratio", _NUMBER),
        ("queries", _COUNT),
        ("data_inputs", _COUNT),
        ("data_labels", _COUNT),
        ("seeds", _COUNT),
        ("seeds_failed", _COUNT),
        ("seeds_not_applicable", _COUNT),
        ("error", _TEXT),
    ]
)

# Rates are shares of pairs of a key and a model in [0, 1].
NULL = pa.schema(
    [
        ("task", _TEXT),
        ("defense", _TEXT),
        ("defense_params", _TEXT),
        ("defense_label", _TEXT),
        ("reading", _TEXT),
        ("level", _NUMBER),
        ("is_alpha", _FLAG),
        ("models", _COUNT),
        ("models_failed", _COUNT),
        ("keys", _COUNT),
        ("pairs", _COUNT),
        ("unreadable", _COUNT),
        ("expected", _NUMBER),
        ("exceeding", _COUNT),
        ("rate", _NUMBER),
        ("low", _NUMBER),
        ("high", _NUMBER),
        ("effective", _NUMBER),
        ("worst_model", _TEXT),
        ("worst_rate", _NUMBER),
        ("log10_p_min", _NUMBER),
        ("p_pooled", _NUMBER),
        ("p_worst", _NUMBER),
        ("p_exceeding", _NUMBER),
        ("p_holm", _NUMBER),
        ("verdict", _TEXT),
        ("calibration", _TEXT),
        ("source_digest", _TEXT),
        ("error", _TEXT),
    ]
)

NULL_MODELS = pa.schema(
    [
        ("task", _TEXT),
        ("defense", _TEXT),
        ("defense_params", _TEXT),
        ("reading", _TEXT),
        ("stranger", _TEXT),
        ("kind", _TEXT),
        ("model", _TEXT),
        ("job_id", _TEXT),
        ("pairs", _COUNT),
        ("unreadable", _COUNT),
        ("reason", _TEXT),
        ("quantile", pa.list_(_NUMBER)),
        ("owner", pa.list_(_COUNT)),
        ("log10_p", pa.list_(_NUMBER)),
    ]
)

TABLES = {
    "records": RECORDS,
    "decoys": DECOYS,
    "leaderboard": LEADERBOARD,
    "matrix": MATRIX,
    "null": NULL,
    "null_models": NULL_MODELS,
}
