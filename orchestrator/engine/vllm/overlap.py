"""Read an engine's tokenizer while its processes start; vLLM does one after the other.

A start's longest way goes through the worker: device, weights, graphs. EngineCore and the process that asks it both
need the tokenizer, which takes half a second for 50,000 words, and more for large vocabularies. vLLM reads it in the
one before EngineCore is started, and in the other once the worker is ready. Here both read it while they would wait.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import wraps
from typing import Any

from orchestrator import compat
from orchestrator.compat import features, table

VARIABLE = "ORCHESTRATOR_OVERLAP"
_SWITCH_S = 0.0002  # what starts a process has many short waits, and would pay Python's 5 ms after each
_started: list[Callable[[], object]] = []  # to be called once, when a fork of this process has been started
_heard: list[Callable[[], object]] = []  # to be called once, when this process answers an EngineCore's first word
_making = threading.local()  # .asked: arguments of the AsyncLLM that this thread makes, .client: its EngineCoreClient


def in_client() -> None:
    """In the process that asks the engine: EngineCore starts first, then the tokenizer is read."""
    if compat.on(features.OVERLAP):
        compat.patch(table.HANDSHAKE, _answering)
        compat.patch(table.ASYNC_LLM_INIT, _noted)
        compat.patch(table.RENDERER, _core_first)
        compat.patch(table.CORE_CLIENT, _made_already)


def in_core() -> None:
    """In EngineCore: the tokenizer is read while the workers start."""
    if compat.on(features.OVERLAP):
        compat.patch(table.TOKENIZER_OF, _once)
        compat.patch(table.CORE_INIT, _tokenizer_beside)


def process_started() -> None:
    """A process was forked for this one."""
    _call(_started)


def _answering(plain: Callable[..., None]) -> Callable[..., None]:
    @wraps(plain)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _call(_heard)
        plain(self, *args, **kwargs)

    return __init__


def _noted(plain: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(plain)

    @wraps(plain)  # its signature is asked for, with the class's
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        found = signature.bind(self, *args, **kwargs)
        found.apply_defaults()
        _making.asked, _making.client = found.arguments, None
        try:
            plain(self, *args, **kwargs)
        except BaseException:
            if _making.client is not None:  # nobody will take it
                _making.client.add_done_callback(_shut_down)
            raise
        finally:
            _making.asked = _making.client = None

    return __init__


def _core_first(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def renderer_from_config(config: Any, **kwargs: Any) -> Any:
        asked = getattr(_making, "asked", None)
        if asked and asked["vllm_config"] is config and _in_pieces(config, asked):
            named = {name: asked[name] for name in ("executor_class", "client_count", "client_index")}
            named |= {"vllm_config": config, "log_stats": asked["self"].log_stats, "client_addresses": None}
            heard = threading.Event()
            _heard.append(heard.set)
            _making.client = _in_thread(lambda: compat.get(table.CORE_CLIENT)(**named))
            _making.client.add_done_callback(lambda _: heard.set())
            if compat.get(table.MP_CONTEXT)().get_start_method() == "forkserver":
                heard.wait()  # a tokenizer that is read holds Python's lock, and EngineCore would wait for its answer
        return plain(config, **kwargs)

    return renderer_from_config


def _in_pieces(config: Any, asked: Any) -> bool:
    """May EngineCore start before what reads the requests is there? Not where vLLM needs that for EngineCore's client.

    An engine for images has it warm up its processor; one of several, or started by another process, has addresses.
    """
    parallel = config.parallel_config.data_parallel_size > 1 or asked["client_addresses"] is not None
    return not (parallel or config.model_config.is_multimodal_model or config.model_config.skip_tokenizer_init)


def _made_already(plain: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plain)
    def make_async_mp_client(*args: Any, **kwargs: Any) -> Any:
        client: Future[Any] | None = getattr(_making, "client", None)
        return client.result() if client is not None else plain(*args, **kwargs)

    return make_async_mp_client


def _tokenizer_beside(plain: Callable[..., None]) -> Callable[..., None]:
    @wraps(plain)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        def read() -> None:  # an error is no news: EngineCore asks again, and then it raises there
            _in_thread(lambda: compat.get(table.TOKENIZER_OF)(vllm_config.model_config))

        if vllm_config.parallel_config.distributed_executor_backend == "mp":
            _started.append(read)  # once the first worker is on its way
        else:
            read()
        plain(self, vllm_config, *args, **kwargs)

    return __init__


def _once(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`plain` remembers what it returns; who asks while another thread reads it waits for that."""
    lock = threading.Lock()

    @wraps(plain)
    def cached_tokenizer_from_config(model_config: Any, **kwargs: Any) -> Any:
        with lock:
            return plain(model_config, **kwargs)

    return cached_tokenizer_from_config


def _call(waiting: list[Callable[[], object]]) -> None:
    while waiting:
        waiting.pop()()


def _in_thread(make: Callable[[], Any]) -> Future[Any]:
    made: Future[Any] = Future()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)
        finally:
            sys.setswitchinterval(usual)

    threading.Thread(target=run, name="overlap", daemon=True).start()
    return made


def _shut_down(client: Future[Any]) -> None:
    with suppress(Exception):
        client.result().shutdown()
