"""Options of the mLSTM that change its numbers."""

from ..signatures import MLSTMOptions as Options

__all__ = ["Options"]
