"""The measured examples, in the order of docs/examples.md."""

from __future__ import annotations

from . import (
    associative_recall,
    language_model,
    long_context,
    seasonal_forecast,
    state_tracking,
    streaming_forecast,
    variable_length_classification,
)
from .common import Experiment

MODULES = (
    state_tracking,
    associative_recall,
    variable_length_classification,
    streaming_forecast,
    seasonal_forecast,
    language_model,
    long_context,
)
EXPERIMENTS: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in MODULES}
