"""A batch as a Ray Data pipeline: any files in, lines out; it goes on where it was; an asker that dies is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.footprint import Footprint, processes
from tests.unit.batch_service import Service, hang, line, running, says
from tests.unit.commands import finish, start
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def batch(mine: Footprint):
    env = mine.environment(ORCHESTRATOR_HOME=str(mine.folder), RAY_TMPDIR=os.environ["RAY_TMPDIR"])
    with running() as server:

        def begin(source: str, *words: str) -> subprocess.Popen[str]:
            own = [
                "batch.engine=ray_data", "cluster.num_cpus=3", f"batch.url=http://127.0.0.1:{server.server_port}/v1",
                f"batch.input={mine.folder}/{source}", f"hydra.run.dir={mine.folder}/out", "batch.retries=1",
            ]  # fmt: skip
            return start("jobs/batch.py", *own, *words, env=env)

        yield begin


def lines(mine: Footprint, folder: str) -> dict[str, int]:
    parts = sorted((mine.folder / folder).iterdir())
    found = [json.loads(text) for part in parts for text in part.read_text().splitlines()]
    ids = Counter(answer["custom_id"] for answer in found)
    assert set(ids.values()) <= {1}
    return {answer["custom_id"]: answer["response"]["status_code"] for answer in found}


def test_parquet_in_lines_out_and_on_from_there(batch, mine: Footprint) -> None:
    names = [f"r{i}" for i in range(300)] + ["bad", "busy-9"]
    rows = [json.loads(line(name)) for name in names]
    pq.write_table(pa.Table.from_pylist(rows), mine.folder / "in.parquet")
    code, result, err = finish(batch("in.parquet"))
    assert (code, result["requests"], result["answered"], result["failed"]) == (1, 302, 300, 1), err
    assert "1 are unanswered" in result["error"]
    assert lines(mine, "in.answers") == {**dict.fromkeys(names[:-2], 200), "bad": 400}
    Service.asked["busy-9"] = 9
    code, result, err = finish(batch("in.parquet"))
    assert (result["before"], result["answered"], result["failed"]) == (301, 301, 1), err
    assert {count for name, count in Service.asked.items() if name != "busy-9"} == {1}
    mine.check()


def test_an_asker_that_is_killed_costs_its_rows_in_flight(batch, mine: Footprint) -> None:
    (mine.folder / "in.jsonl").write_text("".join(line(f"r{i}") for i in range(400)))
    Service.plays = {"r399": [hang]}
    process = batch("in.jsonl", "batch.workers=1", "batch.concurrency=16")
    wait_for(lambda: Service.asked["r399"] or process.poll() is not None)
    (asker,) = [p for p in processes("ray::") if "Asker" in " ".join(p.cmdline())]
    Service.plays = {}
    asker.kill()
    code, result, err = finish(process)
    assert (code, result["answered"]) == (0, 400), (result, err[-3000:])
    assert set(lines(mine, "in.answers").values()) == {200}


def test_a_key_that_is_missing_is_one_line(batch, mine: Footprint) -> None:
    (mine.folder / "in.jsonl").write_text(line("a"))
    Service.plays = {"*": [says(401)]}
    code, result, err = finish(batch("in.jsonl"))
    assert (code, err.count("error: ")) == (1, 1)
    assert "OPENAI_API_KEY" in result["error"]
    Service.plays = {}
    code, result, err = finish(batch("in.jsonl"))
    assert (code, result["answered"]) == (0, 1), err


def test_ctrl_c_leaves_what_was_written(batch, mine: Footprint) -> None:
    (mine.folder / "in.jsonl").write_text("".join(line(f"r{i}") for i in range(5)))
    Service.plays = {"r4": [hang]}
    process = batch("in.jsonl")
    wait_for(lambda: Service.asked["r4"] or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    code, result, _ = finish(process)
    assert (code, result["error"]) == (130, "interrupted")
    Service.plays = {}
    code, result, err = finish(batch("in.jsonl"))
    assert (code, result["answered"]) == (0, 5), err
    mine.check()
