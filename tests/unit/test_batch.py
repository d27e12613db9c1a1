"""A batch's files, and its dealings with a service that is overloaded, refuses, or goes."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from orchestrator.errors import ConfigError, ServeError
from orchestrator.runs.batch import job
from orchestrator.runs.batch.files import Output, Request, check
from orchestrator.runs.batch.job import execute


def line(name: str, **body: object) -> str:
    request = {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": {"prompt": name, **body}}
    return json.dumps(request) + "\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no request in it"),
        (line("a") + "not json\n", "line 2: Invalid JSON"),
        (line("a") + line("a"), "line 2: custom_id 'a' again"),
        (line("a", stream=True), "line 1: a batch does not stream"),
        (line("a").replace("/v1/completions", "/etc/passwd"), "line 1: Input should be"),
        (line("a").replace('"method"', '"verb"'), "line 1: Field required at method"),
    ],
)
def test_a_wrong_input_is_told_by_its_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=said) as caught:
        check(str(tmp_path / "in.jsonl"))
    assert caught.value.where == "batch.input"


def test_a_line_that_was_cut_off_is_forgotten_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with Output(str(path)) as output:
        for name in "abc":
            output.add(Request(custom_id=name, method="POST", url="/v1/completions", body={}), 200, {"x": name})
    path.write_bytes(path.read_bytes()[:-7])
    with Output(str(path)) as output:
        assert output.done == {"a": 200, "b": 200}
    assert path.read_text().count("\n") == 2


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    path = str(tmp_path / "out.jsonl")
    with Output(path), pytest.raises(ConfigError, match="Another run writes"), Output(path):
        pass


class Service(BaseHTTPRequestHandler):
    """Counts prompts; `busy-N` is overloaded N times, `bad` is refused."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["prompt"]
        type(self).asked[prompt] += 1
        status = 200
        if prompt.startswith("busy-") and self.asked[prompt] <= int(prompt[5:]):
            status = 503
        elif prompt == "bad":
            status = 400
        body = json.dumps({"usage": {"completion_tokens": 2}} if status == 200 else {"error": "no"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_PAUSE_S", 0.01)


@pytest.fixture
def url() -> Iterator[str]:
    Service.asked = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(make_app, folder: Path, url: str, *names: str, retries: int = 2):
    (folder / "in.jsonl").write_text("".join(line(name) for name in names))
    app = make_app(f"batch.input={folder}/in.jsonl", f"batch.url={url}", f"batch.retries={retries}")
    shown: list[tuple[int, int]] = []
    return execute(app, lambda who, what: None, lambda *part: shown.append(part)), shown


def test_what_is_answered_is_not_asked_again(make_app, tmp_path: Path, url: str) -> None:
    first, shown = run(make_app, tmp_path, url, "a", "busy-2", "busy-9", "bad")
    assert (first.answered, first.failed, first.ok, first.tokens) == (2, 1, False, 4)
    assert shown[-1] == (3, 4)
    assert "1 requests failed, 1 are unanswered" in first.summary()["error"]
    Service.asked.clear()
    again, _ = run(make_app, tmp_path, url, "a", "busy-2", "busy-9", "bad")
    assert set(Service.asked) == {"busy-9"}
    assert (again.before, again.answered) == (3, 2)
    lines = [json.loads(text) for text in (tmp_path / "in.answers.jsonl").read_text().splitlines()]
    assert {found["custom_id"]: found["response"]["status_code"] for found in lines} == {
        "a": 200,
        "busy-2": 200,
        "bad": 400,
    }


def test_answers_to_other_requests_are_not_mixed_in(make_app, tmp_path: Path, url: str) -> None:
    run(make_app, tmp_path, url, "a")
    with pytest.raises(ConfigError, match="has answers to other requests, 'a'"):
        run(make_app, tmp_path, url, "b")


def test_a_service_that_is_gone_ends_the_run(make_app, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="No service at"):
        run(make_app, tmp_path, "http://127.0.0.1:1", "a", retries=1)
