"""The measured examples, in the order of docs/examples.md."""

from __future__ import annotations

from . import associative_recall, state_tracking
from .common import Experiment

EXPERIMENTS: dict[str, Experiment] = {module.EXPERIMENT.name: module.EXPERIMENT for module in (state_tracking, associative_recall)}
