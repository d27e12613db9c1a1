"""Four processes publish and evict the same keys in one store, and one of them is killed after each second.

Each writes into one journal what it begins and what it was told, so that all know what has to be there: an entry whose
writing was acknowledged, of a key that nobody evicted meanwhile, loads whole. A killed evictor's last request may
still be on its way to a server, so its eviction goes on until the server has let go of the connection.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import defaultdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from orchestrator.errors import ArtifactRefused
from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.store import Store
from tests.waiting import HANG_S, wait_for

KEYS = [f"{number:064x}" for number in range(20)]
SIGNING = b"k" * 32
LIMITS = bundle.Limits(1 << 22, 10)
PROCESSES, BYTES = 4, 50_000


class Journal:
    """Lines that all processes append, and what follows from them for each key.

    Attributes:
        evicting: who evicts a key now.
        evictions: how often somebody began to.
        durable: the newest acknowledged generation since then; 0 if there is none.
        said: how often what was said.
        working: processes that have begun.
    """

    def __init__(self, file: Path) -> None:
        self._handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self._read = 0
        self.evicting: dict[str, set[str]] = defaultdict(set)
        self.evictions: dict[str, int] = defaultdict(int)
        self.durable: dict[str, int] = defaultdict(int)
        self.said: dict[str, int] = defaultdict(int)
        self.working: set[str] = set()

    def say(self, *words: object) -> None:
        os.write(self._handle, (" ".join(map(str, words)) + "\n").encode())

    def catch_up(self) -> None:
        data = os.pread(self._handle, 1 << 24, self._read)
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        for line in data.decode().splitlines():
            what, *words = line.split()
            self.said[what] += 1
            if what == "evict":
                self.evicting[words[0]].add(words[1])
                self.evictions[words[0]] += 1
                self.durable[words[0]] = 0
            elif what == "evicted":
                self.evicting[words[0]].discard(words[1])
            elif what == "works":
                self.working.add(words[0])
            elif what == "killed":
                for evicting in self.evicting.values():
                    evicting.discard(words[0])
            elif what == "published" and self.settled(words[0]) == int(words[2]) >= 0:
                self.durable[words[0]] = max(self.durable[words[0]], int(words[1]))

    def settled(self, key: str) -> int:
        """How often a key was evicted; -1 while somebody does."""
        return -1 if self.evicting[key] else self.evictions[key]


def check(store: Store, journal: Journal, key: str) -> str:
    """What is wrong with a key; "" where nothing is."""
    journal.catch_up()
    wanted, before = journal.durable[key], journal.settled(key)
    found = store.load(key)
    if found is not None:
        try:
            bundle.verify(memoryview(found.data), SIGNING, key, LIMITS)
        except ArtifactRefused as error:
            return f"{key[-2:]}: {error}"
    journal.catch_up()
    if not wanted or before < 0 or journal.settled(key) != before:
        return ""
    journal.say("checked", key)
    if found is None:
        return f"{key[-2:]}: generation {wanted} was acknowledged, and nothing is there"
    older = int(found.header["generation"]) < wanted
    return f"{key[-2:]}: generation {wanted} was acknowledged, {found.header['generation']} is there" if older else ""


def work(uri: str, folder: Path, number: int) -> None:
    """Publish, evict and look, until killed or until the file `stop` is there."""
    store, journal, draw, who = Store(uri), Journal(folder / "journal"), random.Random(number), str(os.getpid())
    journal.say("works", who)
    while not (folder / "stop").exists():
        key, what = draw.choice(KEYS), draw.random()
        journal.catch_up()
        try:
            if what < 0.1:
                journal.say("evict", key, who)
                store.delete(key)
                journal.say("evicted", key, who)
            elif what < 0.6:
                evictions, header = journal.settled(key), store.header(key)
                generation = 1 + int(header["generation"] if header else 0)
                store.save(key, generation, made(key, folder / who, draw))
                journal.say("published", key, generation, evictions)
        except OSError as error:  # nothing was acknowledged
            journal.say("refused", type(error).__name__)
        if wrong := check(store, journal, key):
            (folder / f"wrong-{who}").write_text(wrong)
            return


def port_of(uri: str) -> int:
    """Of an S3 server on this machine."""
    return int(parse_qs(urlsplit(uri).query)["endpoint_override"][0].rpartition(":")[2])


def left_alone(port: int) -> bool:
    """Does a server still hold a connection whose client is gone? What that one asked may still be done."""
    found = psutil.net_connections("tcp4")
    return any(c.laddr and c.laddr.port == port and c.status == psutil.CONN_CLOSE_WAIT for c in found)


def made(key: str, folder: Path, draw: random.Random) -> bytes:
    """A signed bundle with content of its own."""
    (folder / "graphs").mkdir(exist_ok=True, parents=True)
    (folder / "graphs" / "model").write_bytes(draw.randbytes(BYTES))
    known = {"key": key, "factors": {}, "created": 0.0, "publisher": "test"}
    return bundle.pack(folder, [folder / "graphs"], SIGNING, known).tobytes()


def test_what_is_published_during_an_eviction_need_not_stay(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.say("evict", "key", "evictor")
    journal.catch_up()
    journal.say("published", "key", 23, journal.settled("key"))
    journal.say("evicted", "key", "evictor")
    journal.catch_up()
    assert journal.durable["key"] == 0
    journal.say("published", "key", 24, journal.settled("key"))
    journal.catch_up()
    assert journal.durable["key"] == 24


@pytest.mark.parametrize("where", ["folder", "s3"])
@pytest.mark.parametrize("kills", [3, 120], ids=["short", "long"])
def test_every_acknowledged_entry_loads(kills: int, where: str, request: Any, tmp_path: Path) -> None:
    uri = (
        str(tmp_path / "store") if where == "folder" else request.getfixturevalue("s3").replace("prefix", tmp_path.name)
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    numbers = iter(range(10**6))

    def start() -> BaseProcess:
        process = context.Process(target=work, args=(uri, tmp_path, next(numbers)))
        process.start()
        return process

    def works(process: BaseProcess) -> bool:
        journal.catch_up()
        return str(process.pid) in journal.working

    journal, running = Journal(tmp_path / "journal"), [start() for _ in range(PROCESSES)]
    try:
        for _ in range(kills):
            victim = running.pop(0)
            wait_for(lambda process=victim: works(process))
            time.sleep(1.0)
            victim.kill()
            victim.join()
            running.append(start())
            if where == "s3":
                wait_for(lambda: not left_alone(port_of(uri)), "the server still works for who was killed")
            journal.say("killed", victim.pid)
            assert [file.read_text() for file in tmp_path.glob("wrong-*")] == []
        (tmp_path / "stop").touch()
        for process in running:
            process.join(HANG_S)
    finally:
        for process in running:
            process.kill()
            process.join()
    assert [file.read_text() for file in tmp_path.glob("wrong-*")] == []
    store = Store(uri)
    assert [wrong for key in KEYS if (wrong := check(store, journal, key))] == []
    journal.catch_up()
    print(dict(journal.said))
    assert min(journal.said[word] for word in ("published", "checked", "evicted")) > 0
