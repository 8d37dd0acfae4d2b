"""Residual blocks of xLSTM with the names, fields, defaults and state_dict keys of the official `xlstm` package."""

from .feedforward import FeedForward, FeedForwardConfig, GatedFeedForward
from .mlstm import mLSTMBlock, mLSTMBlockConfig, mLSTMLayer, mLSTMLayerConfig
from .slstm import sLSTMBlock, sLSTMBlockConfig, sLSTMLayer, sLSTMLayerConfig
from .stack import xLSTMBlockStack, xLSTMBlockStackConfig

__all__ = [
    "FeedForward",
    "FeedForwardConfig",
    "GatedFeedForward",
    "mLSTMBlock",
    "mLSTMBlockConfig",
    "mLSTMLayer",
    "mLSTMLayerConfig",
    "sLSTMBlock",
    "sLSTMBlockConfig",
    "sLSTMLayer",
    "sLSTMLayerConfig",
    "xLSTMBlockStack",
    "xLSTMBlockStackConfig",
]
