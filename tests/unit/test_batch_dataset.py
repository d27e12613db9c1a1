"""What an asker of a Ray Data batch does with its rows; Ray itself is in tests/ray/test_batch_dataset.py."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator

import pyarrow as pa
import pytest
from ray.data.block import BlockAccessor

from orchestrator.config import BatchConfig
from orchestrator.errors import ServeError
from orchestrator.runs.batch import client, dataset
from orchestrator.runs.batch.answers import read_line
from orchestrator.runs.batch.service import Target
from tests.unit.batch_service import Service, page, running, says


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    with running() as server:
        yield f"http://127.0.0.1:{server.server_port}/v1"


def asked(url: str, *rows: dict, model: str | None = None) -> dict[str, int]:
    """The status of each row that has a line."""
    settings = BatchConfig(retries=1)
    table = asyncio.run(dataset.Asker(settings, Target(url, "", model))(pa.Table.from_pylist(list(rows))))
    assert table.schema.names == ["custom_id", "line"]
    found = [read_line(line.encode()) for line in table["line"].to_pylist()]
    assert [name for name, _ in found] == table["custom_id"].to_pylist()
    return dict(found)


def row(name: str, **more: object) -> dict:
    return {"custom_id": name, "url": "/v1/completions", "body": {"prompt": name}, **more}


def test_only_what_is_wrong_with_a_row_is_final(url: str) -> None:
    Service.plays = {"page": [page(502)], "missing": [says(404)]}
    names = ("a", "bad", "page", "missing", "busy-1")
    assert asked(url, *map(row, names)) == {"a": 200, "bad": 400, "busy-1": 200}


def test_a_row_that_is_no_request_is_its_own_failed_line(url: str) -> None:
    rows = [row("a"), row("b", url="/etc/passwd"), {**row("c"), "body": None}]
    assert asked(url, *rows) == {"a": 200, "b": 400, "c": 400}
    assert asked(url, row("d", body="{"), row("e", body='{"prompt": "e"}')) == {"d": 400, "e": 200}
    assert set(Service.asked) == {"a", "e"}


def test_what_only_other_rows_have_is_not_sent(url: str) -> None:
    """In a column of structs each row has every field of the others, as null."""
    rows = [row("a"), row("b", body={"prompt": "b", "stop": ["x"], "more": {"y": 1}})]
    assert len(asked(url, *rows, model="mine")) == 2
    sent = {body["prompt"]: body for _, _, body in Service.seen}
    assert sent["a"] == {"prompt": "a", "model": "mine"}
    assert sent["b"] == {"prompt": "b", "stop": ["x"], "more": {"y": 1}, "model": "mine"}


def test_no_row_of_a_batch_has_an_answer(url: str) -> None:
    Service.plays = {"*": [page(503)]}
    assert asked(url, row("a"), row("b")) == {}


def test_a_key_that_is_missing_is_one_line_of_the_driver(url: str) -> None:
    Service.plays = {"*": [says(401)]}
    with pytest.raises(ServeError, match="OPENAI_API_KEY") as caught:
        asked(url, row("a"))
    wrapped = RuntimeError("ray::MapWorker")
    wrapped.__cause__ = caught.value
    assert dataset._plain(wrapped, BatchConfig()) is caught.value
    assert (
        str(dataset._plain(ValueError("no\nfile"), BatchConfig(input="in"))) == "Ray Data could not answer in: no file"
    )


def test_files_of_lines() -> None:
    file = io.BytesIO()
    block = pa.table({"custom_id": ["a", "b"], "line": ['{"x": 1}', '{"y": "\\u00e4"}']})
    dataset.Lines("/nowhere").write_block_to_file(BlockAccessor.for_block(block), file)
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [{"x": 1}, {"y": "\u00e4"}]
