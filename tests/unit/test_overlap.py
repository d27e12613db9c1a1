"""EngineCore starts first, and what vLLM would do before and after that goes on beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import compat
from orchestrator.compat import table
from orchestrator.engine.vllm import overlap
from tests.waiting import HANG_S


class Client:
    """An EngineCoreClient."""

    def __init__(self) -> None:
        self.down = threading.Event()

    def shutdown(self) -> None:
        self.down.set()


def config(data_parallel: int = 1, *, images: bool = False, tokenizer: bool = True, backend: str = "mp") -> Any:
    return SimpleNamespace(
        parallel_config=SimpleNamespace(data_parallel_size=data_parallel, distributed_executor_backend=backend),
        model_config=SimpleNamespace(is_multimodal_model=images, skip_tokenizer_init=not tokenizer),
    )


class Vllm:
    """AsyncLLM's start as vLLM has it: tokenizer, then EngineCore's client. What happens is in `did`, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, forks: bool = True) -> None:
        self.did: list[str] = []
        self.asked: dict[str, Any] = {}
        self.client = Client()
        self.tokenizer_fails = self.client_fails = False
        self.read = threading.Event()
        self.answer = overlap._answering(lambda self, addresses, parallel_config: None)
        vllm = self

        def renderer_from_config(config: Any) -> str:
            vllm.did.append("tokenizer")
            vllm.read.set()
            if vllm.tokenizer_fails:
                raise OSError("no tokenizer.json")
            return "renderer"

        def make_async_mp_client(**asked: Any) -> Client:
            vllm.asked = asked
            vllm.did.append("core")
            if vllm.client_fails:
                raise RuntimeError("Engine core initialization failed")
            if forks and threading.current_thread() is not threading.main_thread():
                vllm.read.clear()
                overlap.process_started()
                assert not vllm.read.wait(0.2)  # who reads it holds Python's lock: EngineCore would have no answer
                vllm.answer(None, "tcp://", {})
            if threading.current_thread() is not threading.main_thread():
                assert vllm.read.wait(HANG_S)  # EngineCore comes up no sooner than the tokenizer is read
            vllm.did.append("core is up")
            return vllm.client

        class AsyncLLM:
            def __init__(
                self, vllm_config: Any, executor_class: Any, log_stats: bool, client_addresses: Any = None,
                client_count: int = 1, client_index: int = 0,
            ) -> None:  # fmt: skip
                self.log_stats = log_stats or vllm.more_stats
                self.renderer = vllm.renderer(vllm_config)
                self.engine_core = vllm.make(
                    vllm_config=vllm_config, executor_class=executor_class, log_stats=self.log_stats,
                    client_addresses=client_addresses, client_count=client_count, client_index=client_index,
                    renderer=self.renderer,
                )  # fmt: skip

        self.more_stats = False
        self.renderer = overlap._core_first(renderer_from_config)
        self.make = overlap._made_already(make_async_mp_client)
        AsyncLLM.__init__ = overlap._noted(AsyncLLM.__init__)  # type: ignore[method-assign]
        self.llm = AsyncLLM
        method = "forkserver" if forks else "spawn"
        names = {
            table.CORE_CLIENT: self.make,
            table.MP_CONTEXT: lambda: SimpleNamespace(get_start_method=lambda: method),
        }
        monkeypatch.setattr(compat, "get", names.__getitem__)


@pytest.mark.parametrize("forks", [True, False])
def test_the_tokenizer_is_read_while_engine_core_starts(forks: bool, monkeypatch) -> None:
    vllm = Vllm(monkeypatch, forks=forks)
    vllm.more_stats = True  # vLLM decides while it makes the engine
    made = vllm.llm(config(), "executor", False)
    assert set(vllm.did[:2]) == {"core", "tokenizer"}
    assert vllm.did[2:] == ["core is up"]
    if forks:
        assert vllm.did[0] == "core"
    assert made.engine_core is vllm.client
    assert (vllm.asked["executor_class"], vllm.asked["log_stats"], vllm.asked["client_count"]) == ("executor", True, 1)


@pytest.mark.parametrize(
    ("of", "addresses"),
    [
        (config(data_parallel=2), None),
        (config(images=True), None),
        (config(tokenizer=False), None),
        (config(), {"input_address": "tcp://"}),
    ],
)
def test_where_the_client_needs_more_the_order_is_vllms(of: Any, addresses: Any, monkeypatch) -> None:
    vllm = Vllm(monkeypatch)
    vllm.llm(of, "executor", False, client_addresses=addresses)
    assert vllm.did == ["tokenizer", "core", "core is up"]
    assert vllm.asked["renderer"] == "renderer"


def test_a_tokenizer_that_cannot_be_read_is_the_error_and_engine_core_is_shut_down(monkeypatch) -> None:
    vllm = Vllm(monkeypatch)
    vllm.tokenizer_fails = True
    with pytest.raises(OSError, match=r"no tokenizer\.json"):
        vllm.llm(config(), "executor", False)
    assert vllm.client.down.wait(HANG_S)


def test_an_engine_core_that_does_not_start_is_the_error(monkeypatch) -> None:
    vllm = Vllm(monkeypatch)
    vllm.client_fails = True
    with pytest.raises(RuntimeError, match="Engine core initialization failed"):
        vllm.llm(config(), "executor", False)
    vllm.client_fails = False
    assert vllm.llm(config(), "executor", False).engine_core is vllm.client  # and nothing of it is left for the next


def core(read: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(compat, "get", {table.TOKENIZER_OF: read}.__getitem__)

    class EngineCore:
        def __init__(self, vllm_config: Any, during: Callable[[], object]) -> None:
            during()

    EngineCore.__init__ = overlap._tokenizer_beside(EngineCore.__init__)  # type: ignore[method-assign]
    return EngineCore


def test_engine_core_reads_its_tokenizer_once_a_worker_is_on_its_way(monkeypatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def read(_: Any) -> None:
        begun.set()
        assert go.wait(HANG_S)
        raise OSError("EngineCore will see it itself")

    def during() -> None:
        assert not begun.is_set()
        overlap.process_started()
        assert begun.wait(HANG_S)

    core(read, monkeypatch)(config(), during)  # and it does not wait for it
    go.set()


def test_without_worker_processes_it_is_read_from_the_beginning(monkeypatch) -> None:
    begun = threading.Event()
    core(lambda _: begun.set(), monkeypatch)(config(backend="uni"), lambda: begun.wait(HANG_S))
    assert begun.is_set()


def test_who_asks_while_another_thread_reads_waits_for_that() -> None:
    reads, begun, go, known = [], threading.Event(), threading.Event(), {}

    def remembering(model_config: str) -> str:
        if model_config not in known:
            reads.append(model_config)
            begun.set()
            assert go.wait(HANG_S)
            known[model_config] = "tokenizer"
        return known[model_config]

    ask, answers = overlap._once(remembering), []
    threads = [threading.Thread(target=lambda: answers.append(ask("model"))) for _ in range(2)]
    threads[0].start()
    assert begun.wait(HANG_S)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(HANG_S)
    assert (answers, reads) == (["tokenizer"] * 2, ["model"])
