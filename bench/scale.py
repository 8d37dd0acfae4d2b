"""docs/scale.md: what training xLSTM 1.4B and 7B should cost on 8 to 512 H100, by arithmetic: ``python -m bench.scale``.

Every figure follows from the sizes of a model, the assumptions in `Machine`, and published measurements of others. Nothing
here is
measured. Times are seconds, sizes bytes, for one GPU and one step of the optimizer, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .checkout import ROOT

PAGE = ROOT / "docs/scale.md"
GPUS = (8, 16, 32, 64, 128, 256, 512)
TOKENS = 8192  #: of a GPU in a step, where memory allows no choice
LONG = 131_072  #: tokens of a sequence under context parallelism
CHUNK = 64  #: steps per chunk of the mLSTM, as xlstm_cuda/ops/flops.py counts them
COMPILED = 0.5  #: share of the peak of linear maps in compiled code
GB = 1e9


@dataclass(frozen=True)
class Machine:
    """The assumptions. An H100 SXM in nodes of eight, with one 400 Gbit/s port for each GPU."""

    peak: float = 989e12  #: bf16 operations a second, dense
    matmul: float = 0.4  #: share of the peak in a step's linear maps, all that is not named here included; see `published`
    attention: float = 450e12  #: operations a second of fused attention, forward and backward together
    cell: float = 54e12  #: the same of the mLSTM: the published 21.06 ms of `mlstm_kernels` (65,536 tokens, 8 heads, 256/512)
    float32: float = 47e12  #: operations a second of a float32 matmul, 0.7 of the peak: the state-only pass
    memory: float = 80e9  #: bytes
    usable: float = 0.92  #: of the memory, without what the driver, NCCL and fragmentation take
    bandwidth: float = 0.8 * 3.35e12  #: bytes a second of the memory
    in_node: float = 0.8 * 450e9  #: bytes a second into a GPU in a collective within a node (NVLink 4)
    between: float = 0.8 * 8 * 50e9  #: the same in a ring over nodes, whose edges between nodes share eight ports
    hop_in_node: float = 2e-6  #: seconds of a ring's step
    hop_between: float = 10e-6
    node: int = 8

    def gather(self, received: float, ranks: int) -> float:
        """An all-gather or reduce-scatter by a ring of neighbouring GPUs: bytes that each receives, and the ring's steps."""
        if ranks == 1:
            return 0.0
        nodes = -(-ranks // self.node)
        crossing = nodes if nodes > 1 else 0
        hops = (ranks - 1 - crossing) * self.hop_in_node + crossing * self.hop_between
        return received / (self.between if crossing else self.in_node) + max(hops, 0.0)


@dataclass(frozen=True)
class Model:
    """Sizes of a decoder: xLSTMLarge, or a Transformer like Llama."""

    name: str
    D: int
    layers: int
    heads: int
    F: int
    V: int = 50304
    recurrent: bool = True
    kv: float = 1.0  #: width of keys and of values of a Transformer over D

    @property
    def block(self) -> int:
        """Weights of a block's linear maps; the two layouts agree: q, k of half the width and v, o, or q, k, v; then out."""
        if self.recurrent:
            return 4 * self.D**2 + 2 * self.heads * self.D + 3 * self.D * self.F
        return int((2 + 2 * self.kv) * self.D**2) + 3 * self.D * self.F

    @property
    def rest_of_block(self) -> int:
        """Norms, and the biases of the gates."""
        return 2 * self.D + (self.D + 2 * self.heads if self.recurrent else 0)

    @property
    def embedding(self) -> int:
        return self.V * self.D

    @property
    def parameters(self) -> int:
        return self.layers * (self.block + self.rest_of_block) + 2 * self.embedding + self.D

    @property
    def matmul_weights(self) -> int:
        """Weights that every token is multiplied by."""
        return self.layers * self.block + self.embedding

    @property
    def qk(self) -> int:
        return self.D // 2 // self.heads

    @property
    def v(self) -> int:
        return self.D // self.heads

    def mixing(self, S: int) -> tuple[float, float]:
        """Operations of all layers for one token in a sequence of S, forward and backward: the mLSTM, or causal attention."""
        if self.recurrent:
            pairs, state = 2 * CHUNK, 2 * self.qk
            forward = pairs * (self.qk + self.v) + state * 2 * (self.v + 1)
            backward = pairs * (3 * self.qk + 2 * self.v) + state * (5 * self.v + 2)
            scale = self.layers * self.heads
        else:
            forward, backward, scale = 2 * S, 5 * S, self.layers * self.D  # half the pairs; backward computes the scores anew
        return float(scale * forward), float(scale * backward)

    @property
    def saved(self) -> int:
        """Bytes that autograd keeps of a block for one token in bf16, outside torch.compile; a test counts ours."""
        if self.recurrent:
            return 34 * self.D + 8 * self.F + 20 * self.heads + 8
        return 28 * self.D + 8 * self.F + 4 * self.heads

    @property
    def state(self) -> int:
        """Bytes of C and n of all layers for a sequence, float32."""
        return 4 * self.layers * self.heads * (self.qk * self.v + self.qk)


XLSTM_1B = Model("xLSTM 1.4B", D=2048, layers=24, heads=4, F=5504)
XLSTM_7B = Model("xLSTM 7B", D=4096, layers=32, heads=8, F=10944)
LLAMA_1B = replace(XLSTM_1B, name="Transformer 1.4B", heads=16, recurrent=False)
LLAMA_7B = replace(XLSTM_7B, name="Transformer 7B", heads=32, recurrent=False)
PAIRS = ((XLSTM_1B, LLAMA_1B), (XLSTM_7B, LLAMA_7B))

LLAMA_8B = Model("Llama 3.1 8B", D=4096, layers=32, heads=32, F=14336, V=128_256, recurrent=False, kv=0.25)


@dataclass(frozen=True)
class Plan:
    """A model on some GPUs: sequences of S tokens, each cut over ``cp`` GPUs, weights sharded over all of them."""

    model: Model
    gpus: int
    S: int = TOKENS
    cp: int = 1
    batch: int = 1  #: sequences of a group of cp GPUs
    recomputed: float | None = None  #: share of the blocks' forward that backward does again; None is what fits
    machine: Machine = Machine()

    @property
    def tokens(self) -> int:
        return self.batch * self.S // self.cp

    # ---- memory

    @property
    def shards(self) -> float:
        """float32 weights, gradients and two moments of AdamW, over all GPUs."""
        return 16 * self.model.parameters / self.gpus

    @property
    def gathered(self) -> float:
        """bf16 weights of two blocks, of embedding and head, and the gradients of one block and of the head."""
        m = self.model
        return 2 * (2 * m.block + 2 * m.embedding) + 2 * (m.block + m.embedding)

    @property
    def logits(self) -> float:
        """What the loss keeps (bf16 and float32), and the gradients of both."""
        return 12 * self.model.V * self.tokens

    def activations(self, recomputed: bool) -> float:
        """Of all blocks; recomputed: the inputs of all blocks and what one of them keeps."""
        m = self.model
        return self.tokens * (2 * m.D * m.layers + m.saved if recomputed else m.saved * m.layers)

    def total(self, recomputed: bool) -> float:
        gathered_keys = 0 if self.model.recurrent or self.cp == 1 else 2 * 2 * self.model.D * self.model.kv * self.S * self.batch
        return self.shards + self.gathered + self.logits + self.activations(recomputed) + gathered_keys

    @property
    def recompute(self) -> bool:
        return self.total(False) > self.machine.usable * self.machine.memory

    @property
    def memory(self) -> float:
        return self.total(self.recompute)

    # ---- bytes moved in a step

    @property
    def network(self) -> float:
        """Received for the weights: two all-gathers in bf16, one reduce-scatter in float32."""
        return 8 * self.model.parameters * (self.gpus - 1) / self.gpus

    @property
    def context(self) -> float:
        """Received for the sequence: of the mLSTM C, n, m and decay once each way; of attention keys and values three times."""
        m = self.model
        if m.recurrent:
            a_rank = 4 * m.layers * m.heads * (m.qk * m.v + m.qk + 3) * self.batch
            return 2 * a_rank * (self.cp - 1)
        return 3 * m.layers * 2 * 2 * m.D * m.kv * self.S * self.batch * (self.cp - 1) / self.cp

    @property
    def local(self) -> float:
        """Through the GPU's own memory: what blocks keep is written and read in each direction, and the optimizer's shards."""
        m = self.model
        again = self.forward_again
        return (4 + 2 * again) * m.saved * m.layers * self.tokens + 2 * self.logits + 28 * m.parameters / self.gpus

    # ---- time

    @property
    def forward_again(self) -> float:
        return float(self.recompute) if self.recomputed is None else self.recomputed

    @property
    def compute(self) -> float:
        """Linear maps, mixing, memory, one after the other."""
        m, machine, again = self.model, self.machine, self.forward_again
        linear = (6 * m.matmul_weights + 2 * again * m.layers * m.block) * self.tokens
        return linear / (machine.peak * machine.matmul) + self.mixing + self.local / machine.bandwidth

    @property
    def mixing(self) -> float:
        m, machine = self.model, self.machine
        forward, backward = m.mixing(self.S)
        operations = ((1 + self.forward_again) * forward + backward) * self.tokens
        if not m.recurrent:
            return operations / machine.attention
        # The state-only pass: C forward, again for a recomputed block, and twice as much for dk and dv.
        product = 2 * m.layers * m.heads * m.qk * m.v * self.tokens
        state_only = 0.0 if self.cp == 1 else (3 + self.forward_again) * product / machine.float32
        return operations / machine.cell + state_only

    @property
    def weights_time(self) -> float:
        """All collectives of the weights: three for each block, three for embedding and head."""
        collectives = 3 * (self.model.layers + 1)
        return self.machine.gather(self.network, self.gpus) + (collectives - 1) * self.machine.gather(0.0, self.gpus)

    @property
    def context_time(self) -> float:
        """Collectives along the sequence. Those of the mLSTM wait for its pass and are waited for; attention's overlap half."""
        collectives = (2 if self.model.recurrent else 3) * self.model.layers
        whole = self.machine.gather(self.context, self.cp) + (collectives - 1) * self.machine.gather(0.0, self.cp)
        return whole if self.model.recurrent else whole / 2

    @property
    def exposed(self) -> float:
        """Collectives that nothing overlaps: the first block's and the embedding's weights, and their gradients at the end."""
        first = (self.model.block + self.model.embedding) * (self.gpus - 1) / self.gpus
        return self.machine.gather(2 * first, self.gpus) + self.machine.gather(4 * first, self.gpus)

    @property
    def step(self) -> float:
        hidden = self.weights_time - self.exposed
        return max(self.compute + self.context_time, hidden) + self.exposed

    @property
    def tokens_a_second(self) -> float:
        """Of a GPU."""
        return self.tokens / self.step

    @property
    def mfu(self) -> float:
        """Operations that the model needs, without recomputation, over the peak; backward counts as twice forward."""
        forward, _ = self.model.mixing(self.S)
        return (6 * self.model.matmul_weights + 3 * forward) * self.tokens_a_second / self.machine.peak


def published() -> list[tuple[str, Plan, int]]:
    """Runs of torchtitan on 8 H100 (500 W, 2.4 TB/s): what was run, the same by this arithmetic, tokens a second and GPU.

    `Machine.matmul` is set by the first; the others, in float8 with torch.compile, are not used.
    """
    machine = replace(Machine(), bandwidth=0.8 * 2.4e12, memory=96e9)
    runs = [("2 x 8,192 tokens, half of forward recomputed", Plan(LLAMA_8B, 8, batch=2, recomputed=0.5, machine=machine), 5762)]
    for S, cp, found in ((32_768, 1, 3890), (65_536, 2, 2540), (131_072, 4, 1071), (262_144, 8, 548)):
        what = f"S = {S:,} on {cp}, all of forward recomputed; float8, torch.compile"
        runs.append((what, Plan(LLAMA_8B, 8, S, cp, recomputed=1.0, machine=machine), found))
    return runs


def plans(model: Model, S: int) -> list[Plan]:
    """For every number of GPUs: one sequence of S to a GPU, or to as many as leave each TOKENS of it (all of a small machine)."""
    return [Plan(model, gpus, S, cp=min(gpus, max(1, S // TOKENS))) for gpus in GPUS]


# ---------------------------------------------------------------- the page


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """The first ``text`` columns are words, the others figures."""
    rule = ["---" if column < text else "---:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def sizes() -> str:
    rows = []
    for model in (model for pair in PAIRS for model in pair):
        rows.append(
            [
                model.name,
                f"{model.D:,} / {model.layers} / {model.heads} / {model.F:,}",
                f"{model.parameters / 1e9:.3f}",
                f"{6 * model.matmul_weights / 1e9:.1f}",
                f"{sum(model.mixing(TOKENS)) / 1e9:.2f}",
                f"{sum(model.mixing(LONG)) / 1e9:.2f}",
                f"{model.saved * model.layers / 1e6:.2f}",
                f"{model.state / 1e6:.0f}" if model.recurrent else "-",
            ]
        )
    header = ["model", "D / blocks / heads / F", "10^9 parameters", "linear, GFLOP a token", "mixing at 8k", "mixing at 128k"]
    return table([*header, "kept for backward, MB a token", "C and n, MB a sequence"], rows, text=2)


def memory(model: Model, other: Model) -> str:
    rows = []
    for plan in plans(model, TOKENS):
        against = replace(plan, model=other)
        parts = (plan.shards, plan.gathered, plan.logits, plan.activations(False), plan.activations(True), plan.memory)
        figures = [f"{part / GB:.1f}" for part in parts]
        chosen, beside = ("recomputed" if one.recompute else "kept" for one in (plan, against))
        rows.append([str(plan.gpus), *figures, chosen, f"{against.memory / GB:.1f}", beside])
    header = ["GPUs", "shards", "gathered", "logits", "kept", "recomputed", "**total**", "blocks"]
    return table([*header, f"{other.name}: total", "blocks"], rows, text=0)


def time(model: Model, other: Model, S: int) -> str:
    rows = []
    for plan in plans(model, S):
        against = replace(plan, model=other)
        compiled = replace(plan, machine=replace(plan.machine, matmul=COMPILED))
        rows.append(
            [
                str(plan.gpus),
                f"{plan.gpus * plan.tokens / 1e6:.2f}",
                f"{plan.network / GB:.1f}",
                *([f"{plan.context / GB:.2f}"] if S > TOKENS else []),
                f"{plan.local / GB:.0f}",
                f"{plan.compute:.2f}",
                f"{plan.weights_time + plan.context_time:.2f}",
                f"**{plan.step:.2f}**",
                f"{compiled.step:.2f}",
                f"{plan.tokens_a_second:,.0f}",
                f"{100 * plan.mfu:.0f} %",
                *([f"{against.context / GB:.1f}"] if S > TOKENS else []),
                f"{against.step:.2f}",
                f"{100 * against.mfu:.0f} %",
            ]
        )
    long = ["sequence, GB"] if S > TOKENS else []
    header = ["GPUs", "10^6 tokens a step", "weights, GB", *long, "memory, GB", "compute, s", "network, s", "**step, s**"]
    header += [f"step at {100 * COMPILED:.0f} %", "tokens/s and GPU", "MFU", *(f"{other.name}: {word}" for word in long)]
    return table([*header, *(["step, s"] if long else [f"{other.name}: step, s"]), "MFU"], rows, text=0)


def shares() -> str:
    rows = []
    for model in (model for pair in PAIRS for model in pair):
        for S in (TOKENS, LONG):
            plan = next(plan for plan in plans(model, S) if plan.gpus == 128)
            through = plan.local / plan.machine.bandwidth
            parts = (plan.compute - plan.mixing - through, plan.mixing, through, plan.step - plan.compute)
            rows.append([model.name, f"{S:,}", f"{plan.step:.2f}", *(f"{100 * part / plan.step:.0f} %" for part in parts)])
    return table(["128 GPUs", "S", "step, s", "linear maps", "mLSTM or attention", "memory", "network, exposed"], rows)


def hidden_from(model: Model) -> int:
    """Tokens of a GPU below which the collectives of the weights at 512 GPUs take longer than all else."""
    return next(tokens for tokens in range(64, TOKENS, 64) if (p := Plan(model, 512, tokens)).compute > p.weights_time)


def assumptions() -> str:
    m = Machine()

    def rate(operations: float) -> str:
        return f"{operations / 1e12:.0f} TFLOP/s"

    def network(bandwidth: float, receiver: str, hop: float) -> str:
        return f"{bandwidth / GB:.0f} GB/s into each GPU{receiver}, {1e6 * hop:.0f} us a hop"

    cell = (
        "published 21.06 ms of `mlstm_kernels` (65,536 tokens, 8 heads of 256/512); ours are written to be faster, which no GPU"
        " has shown yet"
    )
    overlap = "collectives of weights, but the first and the last; half of attention's; none of the mLSTM's states"
    found = (
        ("dense bf16 peak", rate(m.peak), "data sheet of the H100 SXM"),
        ("linear maps", f"{100 * m.matmul:.0f} % of the peak", "the first published run below"),
        ("attention, forward and backward", rate(m.attention), "published for FlashAttention-3: 430 to 740"),
        ("mLSTM, forward and backward", rate(m.cell), cell),
        ("state-only pass under context parallelism", rate(m.float32), "float32, 0.7 of the peak"),
        ("memory", f"{m.memory / GB:.0f} GB, {100 * m.usable:.0f} % of it usable", "data sheet; driver, NCCL, fragmentation"),
        ("memory bandwidth", f"{m.bandwidth / 1e12:.2f} TB/s", "0.8 of the data sheet"),
        ("network in a node of 8", network(m.in_node, "", m.hop_in_node), "NVLink 4, 0.8 of 450"),
        ("network between nodes", network(m.between, " of a ring", m.hop_between), "0.8 of a node's eight ports of 400 Gbit/s"),
        ("overlap with computing", overlap, "how FSDP2 and context parallelism are made"),
    )
    rows = [list(one) for one in found]
    return table(["assumption", "value", "from"], rows, text=3)


def render() -> str:
    """The page."""
    runs = [[what, f"{found:,}", f"{plan.tokens_a_second:,.0f}"] for what, plan, found in published()]
    long = [[plans(model, LONG)[4] for model in pair] for pair in PAIRS]
    bytes_ratio = " and ".join(f"{other.context / ours.context:.0f}" for ours, other in long)
    time_ratio = " and ".join(f"{other.step / ours.step:.1f}" for ours, other in long)
    slower = [plan.tokens_a_second / found for _, plan, found in published()[3:]]
    text = f"""# A plan on paper: training on 8 to 512 GPUs

**A prediction. Nothing on this page was measured**: no GPU has been at hand. `python -m bench.scale` writes it from the
sizes of the models and the assumptions below ([bench/scale.py](../bench/scale.py)), and a test holds the page to the
script: do not edit it.

FSDP2 (`fully_shard` for each block, bf16 weights and activations, float32 gradients and AdamW) shards the weights over all
GPUs; each has {TOKENS:,} tokens in a step. A sequence of {LONG:,} tokens is cut along S, context parallelism: 16 GPUs hold
{TOKENS:,} of its tokens each, or 8 GPUs 16,384. xLSTM 7B is the model of arXiv 2503.13427 ({XLSTM_7B.parameters:,}
parameters), xLSTM 1.4B the same architecture with {XLSTM_1B.layers} blocks of width {XLSTM_1B.D:,}. Beside each stands a
Transformer like Llama with as many blocks of the same width and the same feed-forward networks, and so as many parameters:
q, k, v and out of D x D each, instead of q and k of half the width, v, output gate and out.

## Sizes

{sizes()}

Mixing is the mLSTM or causal attention, forward and backward, by the products that xlstm_cuda/ops/flops.py counts. Kept for
backward is every tensor that autograd saves of a block without torch.compile.

## Assumptions

{assumptions()}

Published runs of Llama 3.1 8B on 8 H100 of 500 W with 2.4 TB/s
([torchtitan](https://github.com/pytorch/torchtitan/blob/main/docs/performance.md)), in tokens a second and GPU. The first
sets the share of the peak, which so stands for all that is not named: launches, uneven ranks, power limits, traffic of the
network through the memory. The others are not used. At 8,192 tokens with torch.compile the source has 6,667; the columns
"at {100 * COMPILED:.0f} %" show what a share as of compiled code would give.

{table(["Llama 3.1 8B", "published", "this arithmetic"], runs)}

So for a Transformer with context parallelism at 128k and more this page promises {min(slower):.1f} to {max(slower):.1f}
times what was published; read its figures there as the best case. For the mLSTM under context parallelism nothing is
published.

## Memory of a GPU, GB, {TOKENS:,} tokens
"""
    parts = [text]
    parts += [f"### {model.name}\n\n{memory(model, other)}\n" for model, other in PAIRS]
    parts.append(
        f"""Shards: float32 weights, gradients, two moments. Gathered: bf16 weights of two blocks, of embedding and head, and
gradients on their way. Blocks keep what backward needs where that fits, else backward computes their forward again.

## A step at {TOKENS:,} tokens, FSDP2
"""
    )
    parts += [f"### {model.name}, S = {TOKENS:,}\n\n{time(model, other, TOKENS)}\n" for model, other in PAIRS]
    parts.append(
        f"""Weights: received by two all-gathers (bf16) and one reduce-scatter (float32). Memory: through the GPU's own. MFU: the
operations that the model needs, without recomputation, over the peak.

## A step at {LONG:,} tokens, FSDP2 and context parallelism
"""
    )
    parts += [f"### {model.name}, S = {LONG:,}\n\n{time(model, other, LONG)}\n" for model, other in PAIRS]
    parts.append(
        f"""Along the sequence an mLSTM layer sends its C, n, m and decay once forward and once backward, whatever S is; attention
gathers all keys and values three times, {bytes_ratio} times the bytes at 1.4B and 7B. By this arithmetic, which flatters
it, the Transformer's step takes {time_ratio} times as long.

## Where the time goes

{shares()}

## What would change it

- The mLSTM stands here at the published rate of other kernels. Kernels at the memory's bandwidth (2.2 ms instead of 21 for
  the shape above) would take its share away almost whole.
- With fewer tokens on a GPU the network shows: at 512 GPUs below {hidden_from(XLSTM_1B):,} tokens (1.4B) and
  {hidden_from(XLSTM_7B):,} (7B) the collectives of the weights take longer than all else. Shards within a node and replicas
  between nodes then move less between nodes.
- Left out: checkpoints, the input pipeline, failures, and whatever makes a real run slower beyond the published one.
"""
    )
    return "\n".join(parts)


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
