"""sLSTM and mLSTM as layers with torch.nn.LSTM's contract."""

from .mlstm import mLSTM
from .slstm import sLSTM

__all__ = ["mLSTM", "sLSTM"]
