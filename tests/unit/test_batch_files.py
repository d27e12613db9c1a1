"""A batch's files: what is taken as input, what is told by its line, and whose output is gone on with."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.runs.batch.answers import Output
from orchestrator.runs.batch.requests import check, requests
from tests.unit.batch_service import line

CASES = Path(__file__).parent / "batch_cases"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has no request in it"),
        ("\n  \n", "has no request in it"),
        (line("a") + "not json\n", "line 2: Invalid JSON"),
        (line("a") + "\n\n[]\n", "line 4: Input should be"),
        (line("a") + line("a"), "line 2: custom_id 'a' again"),
        (line("a", stream=True), "line 1: a batch does not stream"),
        (line("a").replace("/v1/completions", "/etc/passwd"), "line 1: Input should be .*at url"),
        (line("a").replace("/v1/completions", "/v1/images/generations"), "line 1: Input should be .*at url"),
        (line("a").replace('"method"', '"verb"'), "line 1: Field required at method"),
        (line("a").replace("POST", "GET"), "line 1: Input should be 'POST' at method"),
        (line("a").replace('"a", "method"', '7, "method"'), "line 1: Input should be a valid string at custom_id"),
        (line("a").replace('{"prompt": "a"}', "[]"), "line 1: .* at body"),
        (line("a", deep=1).replace("1}", "[" * 10_000 + "]" * 10_000 + "}"), "line 1: Invalid JSON: nested too deeply"),
        (line("a", x=[{"y": float("nan")}]), "line 1: NaN is no number"),
        (line("a", x=float("-inf")), "line 1: -Infinity is no number"),
        (line("a", x=1).replace("1}", "-1e400}"), "line 1: -1e400 is no number"),
        (line("a", x="\ud800"), "line 1: .*surrogates not allowed"),
        (line("a", x=1).replace("1}", f"{'9' * 5000}}}"), "line 1: Exceeds the limit"),
        (line("a").encode() + line("b").encode().replace(b'"b"', b'"\xff"'), "line 2: 'utf-8' codec can't decode"),
        (line("a").encode("utf-16"), "line 1: the file is text in UTF-16"),
        (line("a").encode("utf-16-be"), "line 1: Invalid JSON"),
        (gzip.compress(line("a").encode(), mtime=0), "line 1: the file is compressed with gzip"),
        (b"PAR1....", "line 1: the file is Parquet"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "content",
)
def test_a_wrong_input_is_told_by_its_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=said) as caught:
        check(str(tmp_path / "in.jsonl"))
    assert caught.value.where == "batch.input"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("blank_lines", "abc"),
        ("byte_order_mark", "ab"),
        ("windows_lines", "ab"),
        ("no_last_newline", "ab"),
    ],
)
def test_files_of_other_systems_are_read(name: str, ids: str) -> None:
    path = str(CASES / f"{name}.jsonl")
    assert check(path) == set(ids)
    assert [request.body["prompt"] for request in requests(path)] == [f"say {i}" for i in ids]


@pytest.mark.parametrize(("name", "text"), [("not_a_number", "NaN"), ("overflow_number", "1e999")])
def test_what_is_no_number_is_told_with_its_line(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"line 2: {text} is no number"):
        check(str(CASES / f"{name}.jsonl"))


def test_what_openai_takes_is_taken(tmp_path: Path) -> None:
    more = json.dumps({**json.loads(line("more")), "metadata": {"who": "me"}, "priority": None})
    urls = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    long = line("long", stream=False, big=["x"] * 100_000).rstrip()
    named = [json.dumps({"custom_id": url, "method": "POST", "url": url, "body": {}}) for url in urls]
    fine = ["\u2028 line \U0001f600", "\x85"]
    (tmp_path / "in.jsonl").write_text(
        "\n".join([more, *named, long, line(fine[0]), json.dumps(json.loads(line(fine[1])))])
    )
    assert check(str(tmp_path / "in.jsonl")) == {"more", "long", *urls, *fine}


@pytest.mark.parametrize("name", ["", "missing.jsonl", "."])
def test_an_input_that_is_no_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"empty|No such file|is no file") as caught:
        check(name)
    assert caught.value.where == "batch.input"


def test_a_model_that_is_not_served_is_told_before_anything_starts() -> None:
    path = str(CASES / "foreign_model_name.jsonl")
    with pytest.raises(ConfigError, match=r"line 1: model 'gpt-4o-mini' is not served; one, two is") as caught:
        check(path, ["one", "two"])
    assert "batch.model=one" in str(caught.value)
    assert len(check(path, ["one", "two"], "two")) == 2
    with pytest.raises(ConfigError, match=r"batch.model=three is not served"):
        check(path, ["one", "two"], "three")
    assert len(check(path)) == 2  # of a service elsewhere we do not know


def write(path: Path, *names: str, status: int = 200, errors: str = "") -> None:
    with Output(str(path), errors) as output:
        for name in names:
            output.add(name, status, {"x": name})


@pytest.mark.parametrize("lost", [1, 7, 60, 10_000])
def test_a_line_that_was_cut_off_is_forgotten_and_the_others_stay(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "out.jsonl"
    write(path, "a", "b")
    whole = path.read_bytes()
    write(path, "c")
    cut = path.read_bytes()[len(whole) : -lost]
    path.write_bytes(whole + cut)
    kept = {"a": 200, "b": 200, **({"c": 200} if lost == 1 else {})}  # the newline alone was lost
    with Output(str(path)) as output:
        assert output.done == kept
        output.add("d", 200, {})
    found = [json.loads(text)["custom_id"] for text in path.read_text().splitlines()]
    assert found == [*kept, "d"]


@pytest.mark.parametrize(
    "content",
    [
        line("a"),  # a batch's input
        line("a").rstrip(),
        "my notes",
        "my notes\n",
        '{"id": "vllm-1", "custom_id": "a", "response": {"status_code": 200, "body": {}}, "error": 0}\n',
        '{"id": "batch_req_1", "custom_id": "a", "response": null, "error": {"code": "batch_expired"}}\n',
        '{"id": "batch_req_1"}\n',
        "[1]\n",
        "\x00\x01\n",
    ],
)
def test_another_tools_file_is_refused_and_stays(tmp_path: Path, content: str) -> None:
    path = tmp_path / "out.jsonl"
    write(path, "z")
    for before in ("", path.read_text()):
        path.write_text(before + content)
        with pytest.raises(ConfigError, match="no answer of a batch of ours") as caught, Output(str(path)):
            pass
        assert caught.value.where == "batch.output"
        assert path.read_text() == before + content


def test_failed_requests_go_to_the_error_file_if_one_is_asked_for(tmp_path: Path) -> None:
    path, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    write(path, "a", errors=str(errors))
    write(path, "bad", status=400, errors=str(errors))
    with Output(str(path), str(errors)) as output:
        assert output.done == {"a": 200, "bad": 400}
    (good,), (failed,) = ([json.loads(text) for text in p.read_text().splitlines()] for p in (path, errors))
    for found, name in ((good, "a"), (failed, "bad")):
        assert set(found) == {"id", "custom_id", "response", "error"}
        assert set(found["response"]) == {"status_code", "request_id", "body"}
        assert found["custom_id"] == name


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    path = str(tmp_path / "out.jsonl")
    with Output(path), pytest.raises(ConfigError, match="Another run writes"), Output(path):
        pass


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "out.jsonl"):
        with pytest.raises(ConfigError, match="cannot be written"), Output(str(path)):
            pass
    with pytest.raises(ConfigError, match="is no file"), Output("/dev/full"):
        pass


def test_a_full_disk_is_one_line_and_costs_no_answer_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Output(str(path)) as output:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, before[1]))
        try:
            with pytest.raises(OrchestratorError, match="cannot be written: File too large"):
                output.add("b", 200, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Output(str(path)) as output:
        assert set(output.done) <= {"a", "b"}
        assert "a" in output.done


def test_answers_of_an_earlier_job_are_taken_over_once(tmp_path: Path) -> None:
    far, near = tmp_path / "far.jsonl", tmp_path / "near.jsonl"
    write(far, "a", "b", "other")
    write(near, "b")
    with Output(str(near)) as output:
        output.take(far, {"a", "b", "c"})
        assert output.done == {"b": 200, "a": 200}
    assert [json.loads(text)["custom_id"] for text in near.read_text().splitlines()] == ["b", "a"]
