"""A batch and its service: overloaded, refusing, gone, elsewhere, or not the one that was meant."""

from __future__ import annotations

import datetime
import email.utils
import ipaddress
import json
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orchestrator.config import AppConfig, BatchConfig, sources
from orchestrator.errors import ConfigError, OrchestratorError, ServeError
from orchestrator.runs.batch import client
from orchestrator.runs.batch.job import BatchResult, execute
from orchestrator.runs.batch.verdict import TABLE, Verdict, of_answer
from tests.unit import batch_service as plays
from tests.unit.batch_service import Server, Server6, Service, line, page, running, says

NOWHERE = "http://127.0.0.1:9"  # no proxy


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and no variables of this machine."""
    monkeypatch.setattr(client, "_PAUSE_S", 0.01)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as found:
        yield found


@pytest.fixture
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


class Batch:
    """Runs in a folder, and what they said."""

    def __init__(self, app: AppConfig, folder: Path) -> None:
        self._app, self.folder = app, folder
        self.said: list[str] = []
        self.shown: list[tuple[int, int]] = []

    def run(self, url: str, *names: str, retries: int = 2, **settings: object) -> BatchResult:
        (self.folder / "in.jsonl").write_text("".join(line(name) for name in names))
        app = deepcopy(self._app)
        app.batch = BatchConfig(f"{self.folder}/in.jsonl", url=url, retries=retries, **settings)
        return execute(app, lambda who, what: self.said.append(what), lambda *part: self.shown.append(part))

    def lines(self, name: str = "in.answers.jsonl") -> dict[str, int]:
        found = [json.loads(text) for text in (self.folder / name).read_text().splitlines()]
        assert len({answer["custom_id"] for answer in found}) == len(found)
        return {answer["custom_id"]: answer["response"]["status_code"] for answer in found}


@pytest.fixture(scope="module")
def app() -> AppConfig:
    return sources.composed([])


@pytest.fixture
def batch(app: AppConfig, tmp_path: Path) -> Batch:
    return Batch(app, tmp_path)


def test_what_is_answered_is_not_asked_again(batch: Batch, url: str) -> None:
    first = batch.run(url, "a", "busy-2", "busy-9", "bad")
    assert (first.answered, first.failed, first.ok, first.tokens) == (2, 1, False, 4)
    assert batch.shown[-1] == (3, 4)
    assert "1 requests failed, 1 are unanswered" in first.summary()["error"]
    assert "503 no" in first.summary()["error"]
    Service.asked.clear()
    again = batch.run(url, "a", "busy-2", "busy-9", "bad")
    assert set(Service.asked) == {"busy-9"}
    assert (again.before, again.answered) == (3, 2)
    assert batch.lines() == {"a": 200, "busy-2": 200, "bad": 400}


PAST = email.utils.format_datetime(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), usegmt=True)
AGAIN = {
    "408": says(408),
    "409": says(409),
    "425": says(425),
    "429": says(429),
    "429, in no seconds": says(429, retry_after="0"),
    "429, after a date": says(429, retry_after=PAST),
    "429, after nonsense": says(429, retry_after="soon"),
    "500": says(500),
    "502, a page": page(502),
    "503, a page": page(503),
    "504": says(504, ""),
    "599": says(599),
    "200, a page": page(200),
    "200, cut off": says(200, '{"choices": [{"te'),
    "200, no object": says(200, "[]"),
    "200, an error": says(200, {"error": {"message": "overloaded"}}),
    "204": says(204, ""),
    "half the body": plays.cut,
    "a reset": plays.reset,
    "bad compression": says(200, "{}", content_encoding="gzip"),
}


@pytest.mark.parametrize("play", AGAIN.values(), ids=AGAIN)
def test_the_state_of_a_service_is_asked_again(batch: Batch, url: str, play: plays.Play) -> None:
    Service.plays = {"a": [play, plays.well]}
    found = batch.run(url, "a", "b")
    assert found.ok, (found.summary(), batch.said)
    assert Service.asked == {"a": 2, "b": 1}
    assert any("asking again" in said for said in batch.said)


@pytest.mark.parametrize("play", AGAIN.values(), ids=AGAIN)
def test_a_state_that_stays_is_never_final(batch: Batch, url: str, play: plays.Play) -> None:
    Service.plays = {"a": [play]}
    found = batch.run(url, "a", "b", retries=1)
    assert (found.answered, found.failed, Service.asked["a"]) == (1, 0, 2)
    assert url in found.summary()["error"]
    assert batch.lines() == {"b": 200}
    Service.plays = {}
    assert batch.run(url, "a", "b").ok


LATER = {
    "a redirect": (says(307, "", location="https://elsewhere/v1"), "a redirect to https://elsewhere/v1"),
    "a login page": (says(302, "", location="/login"), "a redirect to /login"),
    "402": (says(402), "402 why"),
    "404, no such path": (page(404), "404 no JSON object"),
    "404, no such model": (says(404), "404 why; it serves first, second"),
    "404, of FastAPI": (says(404, {"detail": "Not Found"}), "404 Not Found"),
    "405": (says(405), "405 why"),
    "400, a page": (page(400), r"400 no JSON object \(text/html\): <html>"),
    "413, a page": (page(413), "413 no JSON object"),
}


@pytest.mark.parametrize(("play", "said"), LATER.values(), ids=LATER)
def test_what_another_try_would_not_mend_is_left_for_later(batch: Batch, url: str, play: plays.Play, said: str) -> None:
    Service.plays = {"a": [play]}
    found = batch.run(url, "a", "b")
    assert (found.answered, found.failed, Service.asked["a"]) == (1, 0, 1)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.summary()["error"])
    assert "\n" not in found.summary()["error"]
    Service.plays = {}
    assert batch.run(url, "a", "b").ok


@pytest.mark.parametrize("status", [400, 413, 415, 422, 431])
def test_what_is_wrong_with_a_request_is_final(batch: Batch, url: str, status: int) -> None:
    Service.plays = {"a": [says(status)]}
    found = batch.run(url, "a", "b")
    assert (found.answered, found.failed, Service.asked["a"]) == (1, 1, 1)
    assert batch.lines() == {"a": status, "b": 200}
    assert batch.run(url, "a", "b").failed == 1
    assert Service.asked["a"] == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_missing_ends_the_run_and_the_next_asks_all(
    batch: Batch, url: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"n{i}" for i in range(100)]
    Service.plays = {"*": [says(status)]}
    with pytest.raises(ServeError, match=f"{status} why.*Set OPENAI_API_KEY") as caught:
        batch.run(url, *names, concurrency=4)
    assert len(Service.asked) < 20
    assert "\n" not in str(caught.value)
    assert batch.lines() == {}
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ServeError, match="The key in OPENAI_API_KEY is not one") as caught:
        batch.run(url, *names)
    assert "wrong" not in str(caught.value)
    Service.plays, Service.seen = {}, []
    monkeypatch.setenv("OPENAI_API_KEY", " sk-right\n")
    assert batch.run(url, *names).answered == len(names)
    assert {key for _, key, _ in Service.seen} - {"Bearer wrong"} == {"Bearer sk-right"}  # some were on their way


def test_a_key_that_no_header_can_carry_is_told_first(batch: Batch, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u201cquoted\u201d")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY has characters"):
        batch.run(url, "a")
    assert not Service.asked


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_an_address_with_or_without_v1(batch: Batch, url: str, end: str) -> None:
    assert batch.run(url + end, "a").ok
    assert [path for path, _, _ in Service.seen] == ["/v1/completions"]


def test_an_address_below_a_path(batch: Batch, url: str) -> None:
    assert batch.run(f"{url}/llm/v1", "a").ok
    assert [path for path, _, _ in Service.seen] == ["/llm/v1/completions"]


@pytest.mark.parametrize(
    "wrong", ["localhost:8000", "ftp://host/v1", "http://", "http://h/v1?api-version=1", "http://[::1"]
)
def test_what_is_no_address_is_told_first(batch: Batch, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"batch\.url=") as caught:
        batch.run(wrong, "a")
    assert caught.value.where == "batch.url"


def test_ipv6_loopback(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", NOWHERE)
    assert socket.has_ipv6
    with running(Server6, "::1") as server:
        assert batch.run(f"http://[::1]:{server.server_port}/v1", "a").ok


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", [NOWHERE, "socks5://127.0.0.1:9", "socks4://nobody-knows:9"])
def test_this_machine_is_never_asked_through_a_proxy(
    batch: Batch, server: Server, monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    for host in ("127.0.0.1", "localhost"):
        assert batch.run(f"http://{host}:{server.server_port}/v1", host, output=f"{batch.folder}/{host}").ok


def test_a_service_elsewhere_is_asked_through_the_proxy(
    batch: Batch, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", url.removeprefix("http://"))
    assert batch.run("http://service.invalid/v1", "a").ok
    assert [path for path, _, _ in Service.seen] == ["http://service.invalid/v1/completions"]
    Service.plays = {"*": [says(407)]}
    with pytest.raises(ServeError, match=r"407 why.*The proxy wants a name and a password"):
        batch.run("http://service.invalid/v1", "a", "b")


@pytest.mark.parametrize("proxy", ["http://me:secret@127.0.0.1:9", "socks5://me:secret@127.0.0.1:9"])
def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ServeError, match=r"No service at http://service.invalid through the proxy .*127.0.0.1:9") as at:
        batch.run("http://service.invalid", "a", retries=1)
    assert "secret" not in str(at.value)


def test_a_proxy_of_a_kind_that_nobody_knows_is_one_line(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks4://host:9")
    with pytest.raises(ConfigError, match="through the proxy socks4://host:9"):
        batch.run("http://service.invalid", "a")


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize("value", ["service.invalid", "other, .invalid", "*"])
def test_no_proxy_counts(batch: Batch, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ServeError, match=r"No service at http://service.invalid: "):
        batch.run("http://service.invalid", "a", retries=0)


def test_a_service_that_is_gone_ends_the_run(batch: Batch) -> None:
    with pytest.raises(ServeError, match=r"No service at http://127.0.0.1:1: ConnectError"):
        batch.run("http://127.0.0.1:1", "a", retries=1)
    assert any("asking again" in said for said in batch.said)


@pytest.mark.parametrize("play", [page(404), page(503), says(429), plays.reset], ids=["404", "503", "429", "reset"])
def test_a_service_that_answers_nothing_ends_the_run_before_all_were_asked(
    batch: Batch, url: str, play: plays.Play
) -> None:
    Service.plays = {"*": [play]}
    names = [f"n{i}" for i in range(300)]
    with pytest.raises(ServeError, match="requests in a row got no answer"):
        batch.run(url, *names, retries=0, concurrency=4)
    assert len(Service.asked) < 200
    assert batch.lines() == {}


def test_requests_that_a_service_dies_of_do_not_end_the_run(batch: Batch, url: str) -> None:
    poison = {f"p{i}" for i in range(20)}
    Service.plays = {name: [says(500)] for name in poison}
    well = {f"n{i}" for i in range(20)}
    found = batch.run(url, *poison, *well, retries=0, concurrency=1)
    assert (found.answered, found.failed) == (20, 0)
    assert set(batch.lines()) == well


@pytest.mark.parametrize("play", [plays.hang, plays.drip], ids=["silent", "dripping"])
def test_an_answer_that_does_not_come_is_left(batch: Batch, url: str, play: plays.Play) -> None:
    Service.plays = {"a": [play]}
    found = batch.run(url, "a", retries=0, timeout_s=0.3)
    assert "no answer within batch.timeout_s=0.3" in found.summary()["error"]
    assert batch.lines() == {}


@pytest.mark.parametrize(
    "usage", [None, [], "many", {}, {"completion_tokens": None}, {"completion_tokens": "7"}, {"total_tokens": 3}, 5]
)
def test_odd_usage_figures_cost_nothing(batch: Batch, url: str, usage: object) -> None:
    Service.plays = {"a": [says(200, {"choices": [], "usage": usage})], "b": [says(200, {"data": []})]}
    found = batch.run(url, "a", "b")
    assert (found.ok, found.tokens) == (True, 0)


def test_what_an_answer_has_that_json_has_not_is_null(batch: Batch, url: str) -> None:
    Service.plays = {"a": [says(200, '{"choices": [{"logprobs": [NaN, -Infinity, 1e999, 0.5]}]}')]}
    assert batch.run(url, "a").ok

    def never(text: str) -> None:
        raise AssertionError(text)

    found = json.loads((batch.folder / "in.answers.jsonl").read_text(), parse_constant=never)
    assert found["response"]["body"]["choices"][0]["logprobs"] == [None, None, None, 0.5]


def test_a_model_for_all_requests(batch: Batch, url: str) -> None:
    assert batch.run(url, "a", model="mine").ok
    assert Service.seen[0][2] == {"prompt": "a", "model": "mine"}


def test_failed_requests_in_a_file_of_their_own(batch: Batch, url: str) -> None:
    for _ in range(2):
        found = batch.run(url, "a", "bad", errors=f"{batch.folder}/errors.jsonl")
        assert (found.answered, found.failed) == (1, 1)
    assert (batch.lines(), batch.lines("errors.jsonl")) == ({"a": 200}, {"bad": 400})
    assert Service.asked == {"a": 1, "bad": 1}


@pytest.mark.parametrize("setting", ["output", "errors"])
def test_the_input_is_no_output(batch: Batch, url: str, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"batch.{setting} is the input"):
        batch.run(url, "a", **{setting: f"{batch.folder}/../{batch.folder.name}/in.jsonl"})
    assert (batch.folder / "in.jsonl").read_text() == line("a")


def test_answers_to_other_requests_are_not_mixed_in(batch: Batch, url: str) -> None:
    batch.run(url, "a")
    with pytest.raises(ConfigError, match="has answers to other requests, 'a'"):
        batch.run(url, "b")


def test_a_service_that_asks_for_a_pause_gets_it_from_all(
    batch: Batch, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    Service.plays = {"a": [says(429, retry_after="40"), plays.well]}
    assert batch.run(url, "a", "b", "c", concurrency=1).ok
    assert min(paused[-3:]) > 20  # the second try, and the two requests after it


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [("7", 7, 7), ("0.5", 0.5, 0.5), ("", 0, 0), ("soon", 0, 0), ("nan", 0, 0), ("inf", 0, 0), ("DATE", 50, 100)],
)
def test_both_forms_of_retry_after(value: str, least: float, most: float) -> None:
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    got = httpx.Response(429, headers={"retry-after": value.replace("DATE", date)})
    assert least <= client._retry_after(got) <= most


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an authority that nobody knows, for 127.0.0.1; with its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mine")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2120, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_certificate_that_nobody_knows_ends_the_run_until_it_is_named(
    batch: Batch, server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = f"https://127.0.0.1:{server.server_port}/v1"
    with pytest.raises(ServeError, match=r"CERTIFICATE_VERIFY_FAILED.*Set SSL_CERT_FILE"):
        batch.run(url, "a", retries=50)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert batch.run(url, "a").ok


def test_tls_where_there_is_none_is_one_line(batch: Batch, server: Server) -> None:
    with pytest.raises(OrchestratorError, match="No service at https://"):
        batch.run(f"https://127.0.0.1:{server.server_port}", "a", retries=1)


def test_the_table_has_a_verdict_for_every_status() -> None:
    for status in range(100, 1000):
        for body in (None, {}, {"error": {"message": "x"}}):
            verdict = of_answer(status, body)
            assert verdict is not Verdict.final or body is not None
    assert set(Verdict) == set(TABLE.values())


def test_a_service_of_our_own_is_on_loopback_and_gets_its_key_and_model(
    app: AppConfig, url: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[AppConfig] = []

    @contextmanager
    def serving(app: AppConfig, say: object) -> Iterator[SimpleNamespace]:
        begun.append(app)
        yield SimpleNamespace(address=url, models=("smollm2_135m",))

    monkeypatch.setitem(sys.modules, "orchestrator.serve.launch", SimpleNamespace(serving=serving))
    monkeypatch.setenv("http_proxy", NOWHERE)
    monkeypatch.setenv("OPENAI_API_KEY", "of another service")
    (tmp_path / "keys").write_text("\n sk-ours \nsk-other\n")
    (tmp_path / "in.jsonl").write_text(line("a") + line("b", model="smollm2_135m"))
    mine = deepcopy(app)
    mine.batch = BatchConfig(f"{tmp_path}/in.jsonl")
    mine.serve.host, mine.serve.api_keys_file = "0.0.0.0", f"{tmp_path}/keys"
    assert execute(mine, lambda who, what: None, lambda *part: None).ok
    assert [cell.serve.host for cell in begun] == ["127.0.0.1"]
    assert {(key, body["model"]) for _, key, body in Service.seen} == {("Bearer sk-ours", "smollm2_135m")}
    (tmp_path / "in.jsonl").write_text(line("a") + line("b", model="gpt-4o-mini"))
    with pytest.raises(ConfigError, match="line 2: model 'gpt-4o-mini' is not served; smollm2_135m is"):
        execute(mine, lambda who, what: None, lambda *part: None)
    assert len(begun) == 1
