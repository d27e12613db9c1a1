"""The layer index in CUDA graphs, without a GPU: after capture, replays with other batches update the right layers.

Attention and KV update are kernels of ours, below vLLM's own custom ops; the pass, the stitching code and vLLM's
wrapper around pieces are the real ones. See cuda_graphs.py.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")
from vllm import forward_context
from vllm.config import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, ForwardContext
from vllm.utils.torch_utils import _encode_layer_name

from orchestrator.errors import LayerNameMismatch
from orchestrator.vllm_plugin import kv_runtime
from tests.unit import cuda_graphs
from tests.waiting import HANG_S

WIDTH, SLOTS, MOST = 4, 32, 8
NAMES = ("model.layers.0.attn", "model.layers.2.attn", "model.layers.1.attn")  # call order is not creation order
NONE, PIECEWISE, FULL = CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL


@torch.library.custom_op("emulated::store", mutates_args=["cache"])
def store(key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    """As vLLM's kernels: a slot of -1 is padding."""
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            cache[slot] = torch.cat([key[row], value[row]])


@torch.library.custom_op("emulated::attend", mutates_args=["output"])
def attend(query: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor, output: torch.Tensor) -> None:
    """A token sees what lies in its own slot and before, in its request's blocks; padding sees nothing."""
    for row, slot in enumerate(slots.tolist()):
        output[row] = torch.tanh(query[row] * cache[slot // 16 * 16 : slot + 1].sum(0)[:WIDTH])


class Layer:
    """What vLLM's custom ops find in the forward context, for attention of both kinds."""

    hisparse_cache = None

    def __init__(self, *, frozen: bool = False, pause: Callable[[], None] = lambda: None) -> None:
        self.kv_cache = torch.zeros(SLOTS, 2 * WIDTH)
        self.impl, self._frozen, self._pause = self, frozen, pause

    def do_kv_cache_update(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
        store(key, value, cache, slots)

    def forward(self, layer: Any, q: Any, k: Any, v: Any, cache: Any, metadata: Any, output: Any, **_: Any) -> None:
        self._pause()
        attend(q, cache, metadata.slots, output)

    def prepare_kv_cache_update(self, metadata: Any) -> None: ...

    def update_kv_cache(self, kv: Any, rope: Any, cache: Any, slots: Any, metadata: Any, *_: Any) -> None:
        # prefill context parallelism and HiSparse update by what the host knows of this very batch
        store(kv, rope, cache, torch.tensor(metadata.on_the_host) if self._frozen else slots)

    def forward_impl(self, query: Any, kv: Any, rope: Any, cache: Any, metadata: Any, output: Any, **_: Any) -> None:
        self.forward(None, query, kv, rope, cache, metadata, output)


class Model(torch.nn.Module):
    """Layers of one kind; `together`: two updates come before their attentions, so that one piece has both."""

    def __init__(self, mla: bool, together: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mla, self.together = mla, together
        self.scale = torch.ones(1)
        self.weights = torch.nn.ParameterList(torch.randn(WIDTH, WIDTH) for _ in NAMES)

    def update(self, key: torch.Tensor, name: str) -> torch.Tensor:
        layer = _encode_layer_name(name)
        if self.mla:
            return torch.ops.vllm.unified_mla_kv_cache_update(key, key + 1, layer, "auto", self.scale)
        return torch.ops.vllm.unified_kv_cache_update(key, key + 1, layer)

    def attend(self, x: torch.Tensor, key: torch.Tensor, name: str, done: torch.Tensor) -> torch.Tensor:
        op = torch.ops.vllm.unified_attention_with_output
        op = torch.ops.vllm.unified_mla_attention_with_output if self.mla else op
        out = torch.empty_like(x)
        op(x, key, key + 1, out, _encode_layer_name(name), kv_cache_dummy_dep=done)
        return x + out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = 2 if self.together else 1
        for first in range(0, len(NAMES), step):
            names = NAMES[first : first + step]
            keys = [torch.tanh(x @ self.weights[NAMES.index(name)]) for name in names]
            done = [self.update(key, name) for key, name in zip(keys, names, strict=True)]
            for key, name, update in zip(keys, names, done, strict=True):
                x = self.attend(x, key, name, update)
        return x


class Turns:
    """Two threads of which one runs; vLLM's micro-batches do so too, and put their forward context back each time."""

    def __init__(self) -> None:
        self._turn, self._changed, self.passed = -1, threading.Condition(), 0

    def pass_on(self) -> None:
        """Let the other one run, if there is one, until it passes on or ends."""
        mine, context = self._turn, forward_context._forward_context
        if mine < 0:
            return
        self.passed += 1
        self._give(1 - mine)
        self._wait(mine)
        forward_context._forward_context = context

    def run(self, work: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """Both halves' results."""
        results: list[Any] = [None, None]

        def half(number: int) -> None:
            self._wait(number)
            try:
                results[number] = work(number)
            except BaseException as error:
                results[number] = error
            self._over.add(number)
            self._give(1 - number)

        self._over: set[int] = set()
        threads = [threading.Thread(target=half, args=(number,), daemon=True) for number in (0, 1)]
        for thread in threads:
            thread.start()
        self._give(0)
        for thread in threads:
            thread.join(HANG_S)
        self._turn = -1
        for result in results:
            if not isinstance(result, torch.Tensor):
                raise result or AssertionError("it hangs")
        return results

    def _give(self, number: int) -> None:
        with self._changed:
            if number not in self._over:
                self._turn = number
            self._changed.notify_all()

    def _wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number, HANG_S)


class Runner:
    """A model with persistent buffers, as vLLM's model runner has them."""

    def __init__(self, kind: str, kv_update: str, mode: CUDAGraphMode, **layer: Any) -> None:
        self.mode, self.around = mode, nullcontext
        self.layers = {name: Layer(**layer) for name in sorted(NAMES)}
        with torch.inference_mode():
            self.x, self.slots = torch.zeros(MOST, WIDTH), torch.full((MOST,), -1)
        model = Model(mla=kind == "mla", together=kind == "together")
        self._run = cuda_graphs.compiled(model, kv_update, lambda: self.around())

    def capture(self) -> Runner:
        """As vLLM does after a warm-up: the largest batch first, with tokens that are all padding."""
        mode, self.mode = self.mode, NONE
        self.step([], MOST)
        self.mode = mode
        for size in (8, 4):
            self.step([], size)
        return self

    def step(self, slots: list[int], size: int) -> torch.Tensor:
        """One batch, padded to a size; returns its tokens' outputs [tokens, width]."""
        self.fill(slots)
        context = self.context(slice(0, size))
        with torch.inference_mode(), forward_context.override_forward_context(context):
            return self._run(self.x[:size])[: len(slots)].clone()

    def half(self, number: int) -> torch.Tensor:
        """One half of the batch in the buffers, which is a micro-batch."""
        rows = slice(4 * number, 4 * number + 4)
        with torch.inference_mode(), forward_context.override_forward_context(self.context(rows)):
            return self._run(self.x[rows])

    @torch.inference_mode()
    def fill(self, slots: list[int]) -> None:
        """Write a batch into the buffers; its inputs are made from its slots."""
        self.slots.fill_(-1)
        self.slots[: len(slots)] = torch.tensor(slots, dtype=torch.long)
        self.x.fill_(9.0)  # padding has whatever was there
        for row, slot in enumerate(slots):
            self.x[row] = torch.linspace(-1, 1, WIDTH) * (slot + 1) / SLOTS

    @torch.inference_mode()
    def context(self, rows: slice) -> ForwardContext:
        """vLLM's forward context for some rows of the buffers."""
        padded = self.slots[rows]
        metadata = dict.fromkeys(NAMES, SimpleNamespace(slots=padded, on_the_host=padded.tolist()))
        size = BatchDescriptor(len(padded))
        slots = dict.fromkeys(NAMES, padded)
        return ForwardContext(self.layers, metadata, slots, cudagraph_runtime_mode=self.mode, batch_descriptor=size)

    def cached(self) -> list[torch.Tensor]:
        """Every layer's KV cache, each [slots, 2 * width]."""
        return [layer.kv_cache.clone() for layer in self.layers.values()]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with cuda_graphs.no_gpu(monkeypatch):
        yield


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the layer index's Python ran."""
    counted: Counter[str] = Counter()

    def counting(plain: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(plain)  # stitching code calls it by its name
        def called(*args: Any) -> Any:
            counted[plain.__name__] += 1
            return plain(*args)

        return called

    for function in (kv_runtime.enter_piece, kv_runtime.next_layer, kv_runtime.check_layer):
        monkeypatch.setattr(kv_runtime, function.__name__, counting(function))
    return counted


# slots of each batch, and what it is padded to: more and fewer tokens, full and padded, slots anywhere
BATCHES = (([0, 1, 2], 4), ([5, 3, 4, 9, 7], 8), ([6], 4), ([12, 10, 11, 8], 4), ([1, 0, 20, 21, 22, 23, 30, 31], 8))


def all_said(runner: Runner) -> list[torch.Tensor]:
    said = [runner.step(slots, size) for slots, size in BATCHES]
    return [*said, *runner.cached()]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("mode", [PIECEWISE, FULL], ids=str)
@pytest.mark.parametrize("kind", ["dense", "together", "mla"])
def test_replays_update_the_right_layers(kind: str, mode: CUDAGraphMode, python: Counter[str]) -> None:
    eager = all_said(Runner(kind, "split", NONE))
    assert not python
    runner = Runner(kind, "layer_index", mode).capture()
    assert python["next_layer"] == 3 * len(NAMES)  # the warm-up, and a capture of each size
    assert not any(cache.any() for cache in runner.cached())  # padding went nowhere
    python.clear()
    assert equal(all_said(runner), eager)
    pieces = 2 if kind == "together" else 3
    stitching = {"enter_piece": pieces * len(BATCHES), "check_layer": 3 * len(BATCHES)}
    assert python == (stitching if mode is PIECEWISE else {})


def test_splits_replays_are_the_same_too() -> None:
    assert equal(all_said(Runner("dense", "split", PIECEWISE).capture()), all_said(Runner("dense", "split", NONE)))


@pytest.mark.parametrize(("kv_update", "right"), [("split", True), ("layer_index", False)])
def test_an_update_by_what_the_host_knows_freezes_in_a_piece(kv_update: str, right: bool) -> None:
    """The kind of error that the emulator is for: silent, and only in replays. The plugin refuses such engines."""
    eager = all_said(Runner("mla", "layer_index", NONE, frozen=True))
    assert equal(eager, all_said(Runner("mla", "split", NONE)))
    assert equal(all_said(Runner("mla", kv_update, PIECEWISE, frozen=True).capture()), eager) == right


def test_names_in_another_order_are_seen_at_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_runtime, "_Piece", lambda names, plain=kv_runtime._Piece: plain(names[::-1]))
    with pytest.raises(LayerNameMismatch):
        Runner("together", "layer_index", PIECEWISE).capture()


def test_a_value_that_is_read_while_capturing_is_an_error() -> None:
    with cuda_graphs.Capture(cuda_graphs.Graph()), pytest.raises(RuntimeError, match="stream is capturing"):
        torch.zeros(1).item()


@pytest.mark.parametrize("captured", [False, True])
def test_micro_batches_do_not_mix_up_layers(captured: bool) -> None:
    """Two halves of a batch, each in a thread with a context of its own, take turns at each attention."""
    turns = Turns()
    runner = Runner("dense", "layer_index", NONE, pause=turns.pass_on)
    whole = Runner("dense", "layer_index", NONE)
    graph = cuda_graphs.Graph()
    runner.step([], 4)  # compiles

    def forward() -> list[torch.Tensor]:
        runner.around = (lambda: cuda_graphs.Capture(graph)) if captured else nullcontext
        return turns.run(lambda half: runner.half(half))

    if captured:
        runner.fill([])
        out = forward()
    for slots in ([0, 1, 2, 3, 16, 17, 18, 19], [4, 5, 6, 7, 20, 21]):
        runner.fill(slots)
        if captured:
            graph.replay()
        else:
            out = forward()
        assert turns.passed >= 4
        halves = [whole.step(part, 4) for part in (slots[:4], slots[4:])]
        assert torch.equal(torch.cat(out)[: len(slots)], torch.cat(halves))
    assert equal(runner.cached(), whole.cached())
