"""Text from a recurrent state: prompts of any lengths are read in one packed pass, then every row costs one step a token.

`generate` returns the tokens of all rows, `stream` yields them as they come. On a GPU the step is a CUDA graph (`StepGraphs`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import checks, packing, states
from .models import xLSTMLarge, xLSTMLMModel

Model = xLSTMLMModel | xLSTMLarge
#: (tokens (R,), state, draws (R,) or None) -> (next tokens (R,), new state)
Advance = Callable[[Tensor, Any, "Tensor | None"], tuple[Tensor, Any]]

PIECE = {"cpu": 1024, "cuda": 8192}  #: prompt tokens in one parallel pass, so that memory does not depend on the prompts' lengths
DRAWS = 64  #: random numbers that a row draws at a time
NOT_A_TOKEN = -1  #: what `Sampler.pick` gives where the logits have no distribution
WEIGHTS = 1 << 52  #: a probability of 1, as an integer


def generate(
    model: Model,
    prompts: Tensor | Sequence[Tensor],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos: int | Collection[int] | None = None,
    seed: int | Sequence[int] | None = None,
    state: Any = None,
    on_token: Callable[[int, int], object] | None = None,
    backend: str | None = None,
    graphs: StepGraphs | bool | None = None,
) -> tuple[list[Tensor], Any]:
    """Continues every prompt. A row's tokens do not depend on the other rows (but for the rounding of matmuls of another shape).

    Args:
        model: xLSTMLMModel or xLSTMLarge, on one device, without active dropout.
        prompts: token ids on the model's device, (B, S) or B tensors (S,) of any lengths; int64 or int32. No prompt may be empty,
            unless max_new_tokens is 0.
        max_new_tokens: tokens to write for each row, at most.
        temperature: divides the logits; 0 takes the likeliest token, and draws nothing.
        top_k: only the k likeliest tokens stay.
        top_p: only the likeliest tokens stay, as many as it takes to reach this probability.
        eos: a row ends after this token, or after one of these. The token is the row's last.
        seed: row r draws from a generator of its own, with seed + r, or seed[r] of a sequence. So the row is the one that
            ``generate(model, [prompts[r]], seed=seed + r)`` writes. None takes a seed from torch's default generator.
        state: B rows before the prompts, as a former call, ``forward`` or `states.expand` give it; None is fresh. It is left as
            it is.
        on_token: called with (row, token) for every new token as it comes, rows in rising order within a step.
        backend: as in `xlstm_cuda.functional`; None goes by the device of the tensors.
        graphs: of models on a GPU: None captures the step for this call, False steps without graphs, `StepGraphs` keeps what was
            captured for the next call. Python hooks of modules do not run in a replayed step.

    Returns:
        A list of B int64 tensors on the model's device, each with the row's new tokens; and the state with B rows, each where
        its row stopped: it has read the prompt and the new tokens but the last, which the next call's prompt begins with:
        ``generate(model, [row[-1:] for row in new], state=state, ...)`` goes on.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with what it got and what is expected; a model whose dropout
            is active; a state of other rows.
        LogitsError: logits without a finite largest one, with row and step. RuntimeError: a step that cannot be captured.

    Examples:
        >>> from xlstm_cuda import xLSTMLarge, xLSTMLargeConfig
        >>> model = xLSTMLarge(xLSTMLargeConfig(embedding_dim=32, num_heads=2, num_blocks=1, vocab_size=100)).eval()
        >>> new, state = generate(model, [torch.tensor([1, 2, 3]), torch.tensor([4])], max_new_tokens=5, temperature=0)
        >>> [row.shape for row in new]
        [torch.Size([5]), torch.Size([5])]
        >>> more, state = generate(model, [row[-1:] for row in new], max_new_tokens=5, temperature=0, state=state)
    """
    if on_token is not None and not callable(on_token):
        raise TypeError(f"on_token: got {type(on_token).__name__}, expected a function of (row, token)")
    run = _Run(model, prompts, max_new_tokens, Sampler(temperature, top_k, top_p), eos, seed, state, backend, graphs)
    new: list[list[int]] = [[] for _ in run.prompts]
    for row, token in run:
        new[row].append(token)
        if on_token is not None:
            on_token(row, token)
    return [torch.tensor(row, dtype=torch.int64, device=run.device) for row in new], run.state


def stream(model: Model, prompts: Tensor | Sequence[Tensor], *, max_new_tokens: int, **options: Any) -> Iterator[tuple[int, int]]:
    """`generate` as an iterator of (row, token): a token is computed when it is asked for. Arguments are checked at once.

    ``options``: those of `generate`, but on_token.
    """
    sampler = Sampler(**{name: options.pop(name) for name in ("temperature", "top_k", "top_p") if name in options})
    return iter(_Run(model, prompts, max_new_tokens, sampler, **options))


class LogitsError(RuntimeError):
    """Logits of NaN or infinity, from which no token can be picked."""


@dataclass(frozen=True)
class Sampler:
    """Picks the next token of every row from its logits; arguments as of `generate`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature)
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: got {self.temperature}, expected a finite number of at least 0")
        if self.top_k is not None:
            _whole("top_k", self.top_k, 1)
        if self.top_p is not None:
            _number("top_p", self.top_p)
            if not 0 < self.top_p <= 1:
                raise ValueError(f"top_p: got {self.top_p}, expected a number above 0 and at most 1")

    def pick(self, logits: Tensor, draws: Tensor | None = None) -> Tensor:
        """logits (R, V), draws (R,) float64 from 0 to below 1, None at temperature 0 -> tokens (R,) int64, without a host sync.

        Probabilities become integers before they are summed up: sums are exact, so that neither the device nor the other rows
        decide, and no token below top_k or top_p is ever drawn. `NOT_A_TOKEN` where the largest logit is NaN or infinite.
        """
        largest = logits.amax(-1, keepdim=True)
        defined = largest.squeeze(-1).isfinite()
        if self.temperature == 0:
            return logits.argmax(-1).masked_fill(~defined, NOT_A_TOKEN)
        assert draws is not None
        order = None
        if self.top_k is not None or self.top_p is not None:
            logits, order = logits.sort(descending=True, stable=True)
            logits, order = logits[:, : self.top_k], order[:, : self.top_k]
        p = ((logits.double() - largest.double()) / self.temperature).softmax(-1)  # no overflow at any temperature
        weights = (p * WEIGHTS).masked_fill(~defined.unsqueeze(-1), 0).long()
        below = weights.cumsum(-1)
        total = below[:, -1:]
        if self.top_p is not None:
            weights = weights.masked_fill(below - weights >= self.top_p * total.double(), 0)
            below = weights.cumsum(-1)
            total = below[:, -1:]
        target = torch.minimum((draws.unsqueeze(-1) * total).long(), total - 1)
        place = (below > target).byte().argmax(-1, keepdim=True)  # the first
        token = place if order is None else order.gather(-1, place)
        return token.squeeze(-1).masked_fill(~defined, NOT_A_TOKEN)


class _Draws:
    """Uniform numbers for every row from a generator of its own, which does not know of the other rows."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.drawn = torch.empty(len(seeds), DRAWS, dtype=torch.float64, device="cpu")

    def of(self, rows: Sequence[int], step: int) -> Tensor:
        """(len(rows),) float64 on the CPU, the numbers of these rows at a step; steps come one after the other."""
        if step % DRAWS == 0:
            for row in rows:
                self.drawn[row].uniform_(generator=self.generators[row])
        return self.drawn[list(rows), step % DRAWS]


class _Run:
    """One call of `generate`: iterated once for its tokens, then ``state`` has every row where it stopped."""

    def __init__(
        self,
        model: Model,
        prompts: Tensor | Sequence[Tensor],
        max_new_tokens: int,
        sampler: Sampler,
        eos: int | Collection[int] | None = None,
        seed: int | Sequence[int] | None = None,
        state: Any = None,
        backend: str | None = None,
        graphs: StepGraphs | bool | None = None,
    ) -> None:
        _check_model(model)
        self.model, self.sampler, self.backend = model, sampler, backend
        self.device = next(model.parameters()).device
        _whole("max_new_tokens", max_new_tokens, 0)
        self.max_new_tokens = max_new_tokens
        self.prompts = _rows(prompts, model.config.vocab_size, self.device, may_be_empty=max_new_tokens == 0)
        self.eos = _stop_tokens(eos, model.config.vocab_size)
        self.draws = None if sampler.temperature == 0 else _Draws(_seeds(seed, len(self.prompts)))
        self.graphs = _graphs(graphs, model, self.device)
        self.state = state
        if state is not None:
            _check_state(state, len(self.prompts), self.device)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rows = list(range(len(self.prompts)))  # those that go on
        if not any(len(prompt) for prompt in self.prompts):
            return
        logits, self.state = self._read()
        if self.max_new_tokens == 0:
            return
        stopped: list[tuple[list[int], Any]] = []
        with torch.no_grad():
            tokens = self.sampler.pick(logits, self._draw(rows, 0))
        steps = self._steps(self.state)
        self.state = None
        for count in itertools.count(1):
            values = tokens.tolist()  # waits for the device
            self._check_tokens(rows, values, count)
            yield from zip(rows, values)
            last = count == self.max_new_tokens
            going = [] if last else [place for place, value in enumerate(values) if value not in self.eos]
            if len(going) < len(rows):
                ended = sorted(set(range(len(rows))) - set(going))
                stopped.append(([rows[place] for place in ended], steps.rows(ended)))
                rows = [rows[place] for place in going]
                if not rows:
                    break
                steps.keep(going)
                tokens = tokens[torch.tensor(going, device=self.device)]
            with torch.no_grad():
                tokens = steps.advance(tokens, self._draw(rows, count))
        self.state = _in_order(stopped)

    @torch.no_grad()
    def _read(self) -> tuple[Tensor, Any]:
        """The logits (B, V) after every prompt and the state, by passes over pieces of the pack."""
        tokens, borders = packing.pack(self.prompts)
        ends = [end - 1 for end in itertools.accumulate(map(len, self.prompts))]
        size = PIECE.get(self.device.type, PIECE["cuda"])
        found, state = [], self.state
        for start in range(0, tokens.shape[1], size):
            stop = min(start + size, tokens.shape[1])
            last = torch.tensor([end - start for end in ends if start <= end < stop], dtype=torch.int64, device=self.device)
            packed = None if len(self.prompts) == 1 else borders.clamp(start, stop) - start  # rows elsewhere have no token here
            options: dict[str, Any] = dict(cu_seqlens=packed, logits_to_keep=last, backend=self.backend)
            logits, state = self.model(tokens[:, start:stop], state, True, **options)
            found.append(logits[0])
        return torch.cat(found), state

    def _draw(self, rows: Sequence[int], step: int) -> Tensor | None:
        return None if self.draws is None else self.draws.of(rows, step).to(self.device)

    def _steps(self, state: Any) -> _Eager:
        options: dict[str, Any] = dict(backend=self.backend)
        if type(self.model).step is xLSTMLMModel.step:
            options["in_place"] = True  # the state is the run's own, from its prefill

        def advance(tokens: Tensor, state: Any, draws: Tensor | None) -> tuple[Tensor, Any]:
            logits, state = self.model.step(tokens.unsqueeze(1), state, **options)
            return self.sampler.pick(logits[:, -1], draws), state

        if self.graphs is None:
            return _Eager(advance, state, len(self.prompts))
        return _Captured(self.graphs, (self.sampler, self.backend), advance, state, len(self.prompts))

    def _check_tokens(self, rows: Sequence[int], values: Sequence[int], count: int) -> None:
        if NOT_A_TOKEN in values:
            row = rows[values.index(NOT_A_TOKEN)]
            raise LogitsError(
                f"model: got logits without a finite largest one for row {row} at new token {count - 1}, expected numbers"
            )


class _Eager:
    """The step of the rows that go on, called anew each time; the state is its own, so that a step may change it in place."""

    def __init__(self, advance: Advance, state: Any, count: int) -> None:
        self.call, self.state, self.count = advance, state, count

    def advance(self, tokens: Tensor, draws: Tensor | None) -> Tensor:
        tokens, self.state = self.call(tokens, self.state, draws)
        return tokens

    def rows(self, places: Sequence[int]) -> Any:
        """The state of some rows, which is touched no more."""
        return self.state if len(places) == self.count else states.select(self.state, places)

    def keep(self, places: Sequence[int]) -> None:
        """Goes on with these rows alone."""
        self.state, self.count = states.select(self.state, places), len(places)


class _Captured(_Eager):
    """The same by CUDA graphs, in the smallest bucket that holds the rows."""

    def __init__(self, graphs: StepGraphs, settings: tuple[Any, ...], advance: Advance, state: Any, count: int) -> None:
        super().__init__(advance, state, count)
        self.graphs, self.settings = graphs, settings
        self.graph: _Graph | None = None

    def advance(self, tokens: Tensor, draws: Tensor | None) -> Tensor:
        if self.graph is None:
            self.graph = self.graphs.graph(self.count, self.settings, self.call, self.state)
            self.graph.load(self.state)
            self.state = self.graph.state
        return self.graph.replay(tokens, draws)

    def rows(self, places: Sequence[int]) -> Any:
        return states.select(self.state, places)

    def keep(self, places: Sequence[int]) -> None:
        super().keep(places)
        self.graph = None


class StepGraphs:
    """The steps of one model on a GPU as CUDA graphs, one for each bucket of 1, 2, 4, 8, ... rows and each way of sampling.

    `generate` makes one for each call. Whoever calls it often gives the same one each time, so that nothing is captured twice;
    it keeps two states of every bucket that was used. A graph reads the weights where they lay when it was captured: new values
    in place are seen, and a model whose weights lie elsewhere since is captured anew.

    Raises:
        TypeError, ValueError: not a model, or not one on a GPU.
    """

    def __init__(self, model: Model) -> None:
        _check_model(model)
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError(f"model: got one on {device}, expected one on a GPU")
        self.model, self.device = model, device
        self.captured: dict[tuple[Any, ...], _Graph] = {}
        self._addresses: list[int] = []

    def graph(self, count: int, settings: tuple[Any, ...], advance: Advance, state: Any) -> _Graph:
        """The graph of the bucket that holds ``count`` rows; ``state`` has the form of the model's states."""
        addresses = [weight.data_ptr() for weight in itertools.chain(self.model.parameters(), self.model.buffers())]
        if addresses != self._addresses:
            self.captured.clear()
            self._addresses = addresses
        bucket = 1 << (count - 1).bit_length()
        arithmetic = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = (bucket, arithmetic, *settings)
        if key not in self.captured:
            self.captured[key] = _Graph(bucket, advance, state, self.device)
        return self.captured[key]


class _Graph:
    """One step with the sampling as a CUDA graph: tokens, draws and state lie in buffers, which it reads and writes again."""

    def __init__(self, count: int, advance: Advance, like: Any, device: torch.device) -> None:
        self.device = device
        self.state = states.select(like, [0] * count)
        self.tokens = torch.zeros(count, dtype=torch.int64, device=device)
        self.draws = torch.zeros(count, dtype=torch.float64, device=device)
        self.cuda_graph = torch.cuda.CUDAGraph()
        # Copies that autocast keeps would be freed at its end, behind the back of the graph.
        arithmetic = torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
        )
        try:
            with torch.cuda.device(device), torch.no_grad(), arithmetic:
                self._capture(advance)
        except RuntimeError as error:
            raise RuntimeError(
                f"generate: this model's step cannot be captured as a CUDA graph; graphs=False steps without ({error})"
            ) from error

    def _capture(self, advance: Advance) -> None:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # what is made once, such as cuBLAS' workspaces, is made before the capture
            advance(self.tokens, self.state, self.draws)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(self.cuda_graph):
            self.picked, new = advance(self.tokens, self.state, self.draws)
            self.load(new)

    @torch.no_grad()
    def load(self, state: Any) -> None:
        """The rows of a state into the first of the buffers. What stands in the others is computed in vain."""
        for (buffer, axis), (part, _) in zip(states.tensors(self.state), states.tensors(state), strict=True):
            buffer.narrow(axis, 0, part.shape[axis]).copy_(part)

    def replay(self, tokens: Tensor, draws: Tensor | None) -> Tensor:
        """The next tokens of as many rows as are given; they are overwritten by the next replay."""
        count = len(tokens)
        with torch.cuda.device(self.device):
            self.tokens[:count].copy_(tokens)
            if draws is not None:
                self.draws[:count].copy_(draws)
            self.cuda_graph.replay()
        return self.picked[:count]


def _in_order(stopped: Sequence[tuple[list[int], Any]]) -> Any:
    """The states of all rows, given by groups, in the order of the rows."""
    if len(stopped) == 1:
        return stopped[0][1]
    order = [row for group, _ in stopped for row in group]
    places = sorted(range(len(order)), key=order.__getitem__)
    with torch.no_grad():
        return states.select(states.join([state for _, state in stopped]), places)


# ---------------------------------------------------------------- arguments


def _check_model(model: object) -> None:
    if not isinstance(model, (xLSTMLMModel, xLSTMLarge)):
        raise TypeError(f"model: got {type(model).__name__}, expected an xLSTMLMModel or an xLSTMLarge")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"model: got {name} with active dropout ({module.p:g}), expected a model after model.eval()")


def _check_state(state: Any, count: int, device: torch.device) -> None:
    found = states.rows(state)
    if found is not None and found != count:
        raise ValueError(f"state: got {found} rows, expected {count}, one for each prompt")
    for part, _ in states.tensors(state):
        checks.device("state", part, device)


def _number(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")


def _whole(name: str, value: object, minimum: int, below: int = 1 << 63) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}, expected int")
    if not minimum <= value < below:
        least = f"at least {minimum}" if below == 1 << 63 else f"{minimum} to {below - 1}"
        raise ValueError(f"{name}: got {value}, expected {least}")
    return value


def _rows(prompts: object, vocab_size: int, device: torch.device, may_be_empty: bool) -> list[Tensor]:
    """The prompts as tensors (S,), checked."""
    if isinstance(prompts, Tensor):
        checks.dtype("prompts", prompts, (torch.int64, torch.int32))
        checks.rank("prompts", prompts, "(B, S)")
        rows = list(prompts)
    elif isinstance(prompts, Sequence) and not isinstance(prompts, (str, bytes)):
        rows = list(prompts)
    else:
        raise TypeError(f"prompts: got {type(prompts).__name__}, expected a tensor (B, S) or a list of tensors (S,)")
    for number, row in enumerate(rows):
        name = f"prompts[{number}]"
        checks.dtype(name, checks.tensor(name, row), (torch.int64, torch.int32))
        checks.rank(name, row, "(S)")
        checks.device(name, row, device)
        if not len(row) and not may_be_empty:
            raise ValueError(f"{name}: got no token, expected at least one, because the model says what follows a token")
    rows = [row.long() for row in rows]
    if sum(map(len, rows)):
        low, high = (int(bound) for bound in torch.cat(rows).aminmax())
        if not 0 <= low <= high < vocab_size:
            wrong = low if low < 0 else high
            number = next(number for number, row in enumerate(rows) if bool((row == wrong).any()))
            raise ValueError(f"prompts[{number}]: got token {wrong}, expected 0 to {vocab_size - 1}")
    return rows


def _stop_tokens(eos: object, vocab_size: int) -> frozenset[int]:
    if eos is None:
        return frozenset()
    if isinstance(eos, Iterable) and not isinstance(eos, (str, bytes, Tensor)):
        return frozenset(_whole("eos", token, 0, vocab_size) for token in eos)
    return frozenset([_whole("eos", eos, 0, vocab_size)])


def _seeds(seed: object, count: int) -> list[int]:
    """One for each row."""
    if seed is None:
        seed = int(torch.randint(1 << 62, (), device="cpu"))
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
        if len(seed) != count:
            raise ValueError(f"seed: got {len(seed)} seeds, expected {count}, one for each prompt")
        return [_whole(f"seed[{row}]", one, 0) for row, one in enumerate(seed)]
    first = _whole("seed", seed, 0, (1 << 63) - count)
    return list(range(first, first + count))


def _graphs(graphs: object, model: Model, device: torch.device) -> StepGraphs | None:
    if not isinstance(graphs, (StepGraphs, bool, type(None))):
        raise TypeError(f"graphs: got {type(graphs).__name__}, expected StepGraphs, True, False or None")
    if isinstance(graphs, StepGraphs):
        if graphs.model is not model:
            raise ValueError("graphs: got those of another model, expected those of this one")
        return graphs
    if graphs is False or (graphs is None and device.type != "cuda"):
        return None
    return StepGraphs(model)
