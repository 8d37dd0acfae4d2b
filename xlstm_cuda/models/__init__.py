"""Language models with the official names, fields, defaults and state_dict keys."""

from .language_model import xLSTMLMModel, xLSTMLMModelConfig
from .large import xLSTMLarge, xLSTMLargeConfig

__all__ = ["xLSTMLMModel", "xLSTMLMModelConfig", "xLSTMLarge", "xLSTMLargeConfig"]
