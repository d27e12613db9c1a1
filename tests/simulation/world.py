"""A simulated world: one clock, one random source, processes with event loops and threads, messages between them.

Nothing here runs beside anything else. Threads are greenlets, and event loops take their turns from one heap, so a seed
decides every interleaving, and gives the same run again.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from asyncio import events
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet
from ray.exceptions import GetTimeoutError, RayActorError, RayError

STEPS = 60_000  # a run that takes more does not end


class Broken(BaseException):
    """An invariant does not hold. No `except Exception` of the product's catches it."""


class World:
    """The heap of what is to happen, and the clock that jumps from one to the next."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now, self.steps, self.closed = 0.0, 0, False
        self.current: Process | None = None
        self.hub = getcurrent()
        self.kept: list[object] = []  # what died: collected when the run is over, not at some time within
        self._heap: list[tuple[float, int, Process, Callable[..., object], tuple[Any, ...]]] = []
        self.checks: list[Callable[[], None]] = []

    def at(self, when: float, process: Process, call: Callable[..., object], *words: Any) -> None:
        self.steps += 1
        heapq.heappush(self._heap, (when, self.steps, process, call, words))

    def run(self) -> None:
        """Until nothing is left to happen."""
        try:
            while self._heap:
                when, _, process, call, words = heapq.heappop(self._heap)
                if not process.alive:
                    self.kept.append((call, words))
                    continue
                if when < process.stopped_until:
                    self.at(process.stopped_until, process, call, *words)
                    continue
                self.now = max(self.now, when)
                self.current = process
                events._set_running_loop(process.loop)
                call(*words)
                events._set_running_loop(None)
                for check in self.checks:
                    check()
                if self.steps > STEPS:
                    raise Broken("the run does not end")
        finally:
            events._set_running_loop(None)
            self.closed = True

    def end(self) -> None:
        """End the threads that still wait: each would keep its world in memory, and there are 100,000 worlds."""
        self.closed = True
        for thread in self.kept:
            if isinstance(thread, greenlet) and not thread.dead:
                thread.throw()

    def sleep(self, seconds: float) -> None:
        """In a thread: let others run."""
        me, process = getcurrent(), self.current
        if self.closed:
            return
        if me is self.hub:
            raise Broken("an event loop waits for storage")
        assert process is not None
        self.at(self.now + seconds, process, self.switch, me)
        self.hub.switch()

    def switch(self, thread: greenlet, *words: Any) -> None:
        events._set_running_loop(None)
        self.kept.append(thread)
        thread.switch(*words)


class Process:
    """What is killed and stopped as a whole: its event loop, its threads and its clock.

    Attributes:
        failed: what its threads ended with.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.alive, self.stopped_until = world, name, True, 0.0
        self.loop = Loop(self)
        self.on_death: list[Callable[[], None]] = []
        self.ahead, self.rate = world.random.uniform(0, 1e4), world.random.uniform(0.98, 1.02)

    def clock(self) -> float:
        return self.ahead + self.world.now * self.rate

    def thread(self, work: Callable[[], object], after: float = 0.0) -> None:
        self.world.at(self.world.now + after, self, self.world.switch, greenlet(work, self.world.hub))

    def kill(self) -> None:
        self.alive = False
        self.world.kept.append(self)
        for told in self.on_death:
            told()


class Loop(asyncio.AbstractEventLoop):
    """What asyncio's own classes need of a loop, on the world's clock."""

    def __init__(self, process: Process) -> None:
        self._process, self._tasks = process, 0

    def time(self) -> float:
        return self._process.clock()

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self._later(0.0, asyncio.Handle(callback, args, self, context))

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._later(max(0.0, (when - self.time()) / self._process.rate) + 1e-6, handle)
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def _later(self, delay: float, handle: Any) -> Any:
        self._process.world.at(self._process.world.now + delay, self._process, self._run, handle)
        return handle

    def _run(self, handle: asyncio.Handle) -> None:
        if not handle.cancelled():
            handle._run()

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, work: Any, **_: Any) -> asyncio.Task[Any]:
        self._tasks += 1  # a name from the process's other loops would not be the same in each run
        task = asyncio.Task(work, loop=self, name=f"{self._process.name}-{self._tasks}")
        self._process.world.kept.append(task)
        return task

    def run_in_executor(self, executor: Any, work: Any, *args: Any) -> asyncio.Future[Any]:
        """A thread that begins at some time, and whose result is seen at some time."""
        world, done = self._process.world, self.create_future()

        def run() -> None:
            try:
                result, error = work(*args), None
            except Exception as raised:
                result, error = None, raised
            world.sleep(world.random.expovariate(100))
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)

        self._process.thread(run, world.random.expovariate(100))
        return done

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._process.world.closed and (error := context.get("exception")) is not None:
            raise error


class Call:
    """A message to an actor, and its answer when it comes."""

    def __init__(self) -> None:
        self.done, self.result, self.error = False, None, None
        self.waiting: list[Callable[[], None]] = []

    def set(self, result: Any, error: Exception | None) -> None:
        if not self.done:
            self.done, self.result, self.error = True, result, error
            for wake in self.waiting:
                wake()


class Ref:
    """An object in the object store; it dies with its owner."""

    def __init__(self, owner: Process, value: Any) -> None:
        self.owner, self.value = owner, value


class Ray:
    """What the product uses of Ray."""

    def __init__(self, world: World) -> None:
        self._world = world

    def put(self, value: Any) -> Ref:
        assert self._world.current is not None
        return Ref(self._world.current, value.copy())

    def get(self, what: Any, timeout: float) -> Any:
        world = self._world
        if isinstance(what, Ref):
            world.sleep(world.random.expovariate(10))
            if not what.owner.alive:
                raise RayError("the owner of an object died")
            return what.value
        wait_until(world, lambda: what.done, what.waiting, timeout)
        if not what.done:
            raise GetTimeoutError("no answer")
        if what.error is not None:
            raise what.error
        return what.result


def wait_until(world: World, is_so: Callable[[], bool], waiting: list[Callable[[], None]], timeout: float) -> None:
    """In a thread: until something wakes it, or the time is over."""
    if is_so() or world.closed:
        return
    me, process, woken = getcurrent(), world.current, False
    assert process is not None

    def wake() -> None:
        nonlocal woken
        if not woken:
            woken = True
            world.at(world.now, process, world.switch, me)

    waiting.append(wake)
    world.at(world.now + timeout / process.rate, process, wake)
    world.hub.switch()


class Event:
    """threading.Event."""

    def __init__(self, world: World) -> None:
        self._world, self._set = world, False
        self._waiting: list[Callable[[], None]] = []

    def set(self) -> None:
        self._set = True
        if not self._world.closed:
            for wake in self._waiting:
                wake()

    def wait(self, timeout: float) -> bool:
        wait_until(self._world, lambda: self._set, self._waiting, timeout)
        return self._set or self._world.closed


class Threading:
    """What the product uses of `threading`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def Event(self) -> Event:
        return Event(self._world)

    def Thread(self, target: Callable[..., object], args: tuple[Any, ...], daemon: bool) -> Any:
        process = self._world.current
        assert process is not None
        starter = type("Thread", (), {"start": lambda _: process.thread(lambda: target(*args))})
        return starter()


class Clock:
    """What the product uses of `time`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.current.clock() if self._world.current else 0.0

    time = monotonic


class Actor:
    """A handle of an actor that is restarted when it is killed; its calls are then sent again, as Ray does.

    Args:
        world: where.
        outside: the process that messages wait in while the actor is down.
        faults: "lost", "twice" and "late" give the part of messages that are so.
    """

    RETRIES = 3

    def __init__(self, world: World, outside: Process, faults: dict[str, float]) -> None:
        self.world, self.outside, self.faults = world, outside, faults
        self.process: Process | None = None
        self.methods: Any = None
        self.answered: Callable[[str, tuple[Any, ...], Any], None] = lambda *_: None
        self.disturbed: Callable[[str, tuple[Any, ...]], None] = lambda *_: None  # told of each that is lost or late
        self.open: dict[int, tuple[Process, str]] = {}

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": lambda _, *words: self.send(name, words)})()

    def send(self, name: str, words: tuple[Any, ...]) -> Call:
        call = Call()
        if self.world.closed:
            return call
        for _ in range(1 + (self.world.random.random() < self.faults["twice"])):
            self._post(name, words, self._deliver, call, name, words, self.RETRIES)
        return call

    def _post(self, name: str, about: tuple[Any, ...], work: Callable[..., None], *words: Any) -> None:
        """A message on its way, or lost."""
        if self.world.random.random() < self.faults["lost"]:
            self.disturbed(name, about)
            return
        late = self.world.random.random() < self.faults["late"]
        if late:
            self.disturbed(name, about)
        delay = self.world.random.expovariate(0.1 if late else 50)
        self.world.at(self.world.now + delay, self.outside, work, *words)

    def _deliver(self, call: Call, name: str, words: tuple[Any, ...], retries: int) -> None:
        process = self.process
        if process is None or not process.alive or self.methods is None:
            self.world.at(
                self.world.now + 0.5, self.outside, self._deliver, call, name, words, retries
            )  # it is to come
            return
        self.world.at(self.world.now, process, self._execute, process, call, name, words)
        # Ray sees that an actor dies, and sends its open calls again
        process.on_death.append(lambda: None if call.done else self._again(call, name, words, retries))

    def _again(self, call: Call, name: str, words: tuple[Any, ...], retries: int) -> None:
        if retries <= 0:
            call.set(None, RayActorError())
            return
        self.world.at(self.world.now + 2.0, self.outside, self._deliver, call, name, words, retries - 1)

    def _execute(self, process: Process, call: Call, name: str, words: tuple[Any, ...]) -> None:
        refs = [word for word in words if isinstance(word, Ref)]
        if not all(ref.owner.alive for ref in refs):
            self._answer(call, name, words, None, RayError("the owner of an object died"))
            return
        words = tuple(word.value if isinstance(word, Ref) else word for word in words)
        work = getattr(self.methods, name)(*words)
        if not asyncio.iscoroutine(work):
            self._answer(call, name, words, work, None)
            return
        task = process.loop.create_task(work)
        self.open[id(task)] = (process, name)

        def done(task: asyncio.Task[Any]) -> None:
            self.open.pop(id(task))
            error = task.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            self._answer(call, name, words, None if error else task.result(), error)

        task.add_done_callback(done)

    def _answer(self, call: Call, name: str, words: tuple[Any, ...], result: Any, error: Any) -> None:
        if error is None:
            self.answered(name, words, result)
        self._post(name, words, call.set, result, error)
