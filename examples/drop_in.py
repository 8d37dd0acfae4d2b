"""xlstm_cuda.sLSTM in torch.nn.LSTM's place: the running parity of a bit string, trained in seconds on a CPU.

python examples/drop_in.py                  the sLSTM
python examples/drop_in.py --layer LSTM     torch.nn.LSTM, for comparison
python examples/drop_in.py --layer mLSTM    has no memory mixing between steps, and cannot keep track of a parity
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import xlstm_cuda

LAYERS = {"LSTM": nn.LSTM, "sLSTM": xlstm_cuda.sLSTM, "mLSTM": xlstm_cuda.mLSTM}


class Parity(nn.Module):
    """For each bit, the logit of "an odd number of ones so far"."""

    def __init__(self, layer: str, width: int = 32):
        super().__init__()
        self.rnn = LAYERS[layer](1, width, batch_first=True)  # was: nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, bits: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(2.0 * bits.unsqueeze(-1) - 1.0)
        return self.head(output).squeeze(-1)


def batch(size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    bits = torch.randint(0, 2, (size, length)).float()
    return bits, bits.cumsum(1) % 2


def train(layer: str, steps: int, length: int, seed: int = 0) -> float:
    """Trains on random strings; returns the accuracy over all positions of new strings, half of it from guessing."""
    torch.manual_seed(seed)
    model = Parity(layer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(1, steps + 1):
        bits, parity = batch(64, length)
        loss = nn.functional.binary_cross_entropy_with_logits(model(bits), parity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 10) == 0:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    model.eval()
    with torch.no_grad():
        bits, parity = batch(512, length)
        accuracy = ((model(bits) > 0) == (parity > 0)).float().mean().item()
    print(f"{layer}: accuracy {accuracy:.1%} on new strings of {length} bits")
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", choices=LAYERS, default="sLSTM")
    parser.add_argument("--steps", type=int, default=200, help="batches of 64 strings (default: %(default)s)")
    parser.add_argument("--length", type=int, default=16, help="bits of a string (default: %(default)s)")
    arguments = parser.parse_args()
    train(arguments.layer, arguments.steps, arguments.length)


if __name__ == "__main__":
    main()
