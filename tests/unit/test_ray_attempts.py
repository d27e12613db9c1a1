"""A Ray that does not start is started once more, and then told about by its own log."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.errors import ClusterError
from tests.waiting import wait_for


class Attempts:
    """Stands for `ray.init`: fails as often as told, and notes the ports that Ray's agents would get."""

    def __init__(self, failures: int, wait: Callable[[], object]) -> None:
        self.failures, self.ports, self.wait = failures, [], wait

    def __call__(self, **arguments: object) -> None:
        from orchestrator.cluster import ray_start

        self.arguments = arguments
        self.wait()
        parameters = ray_start.ray._private.parameter.RayParams()
        self.ports.append([getattr(parameters, name) for name in ray_start.AGENT_PORTS])
        if len(self.ports) <= self.failures:
            raise RuntimeError("The current node timed out during startup.")


@pytest.fixture
def sessions() -> Iterator[Path]:
    """A short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch, sessions: Path):
    from orchestrator.cluster import ray_start

    monkeypatch.setenv("RAY_TMPDIR", str(sessions))
    monkeypatch.setattr(ray_start.ray, "shutdown", lambda: None)

    def attempt(
        failures: int, wait: Callable[[list[str]], object] = bool, **arguments: int
    ) -> tuple[Attempts, list[str], str]:
        said: list[str] = []
        init = Attempts(failures, lambda: wait(said))
        monkeypatch.setattr(ray_start.ray, "init", init)
        try:
            ray_start.start(lambda who, what: said.append(what), num_cpus=1, **arguments)
        except ClusterError as error:
            return init, said, str(error)
        return init, said, ""

    return attempt


def log(folder: Path, session: str, name: str, text: str) -> None:
    logs = folder / "ray" / f"session_{session}_{os.getpid()}" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / name).write_text(text)


def test_a_start_that_fails_is_tried_once_more_with_other_ports(attempts) -> None:
    init, said, error = attempts(1)
    first, second = init.ports
    assert first != second
    assert all(isinstance(port, int) and port > 0 for port in [*first, *second])
    assert said == [
        "starting Ray",
        "Ray did not start: The current node timed out during startup.",
        "starting Ray, once more",
    ]
    assert error == ""


def test_the_second_failure_has_its_cause_from_rays_log(attempts, sessions: Path) -> None:
    log(sessions, "1", "raylet.err", "[t C 1 1] an older session's\n")
    os.utime(sessions / "ray" / f"session_1_{os.getpid()}", (1, 1))
    log(sessions, "2", "raylet.out", "[t I 1 1] all well\n[t C 1 1] Timed out   waiting for file x\n[t I 1 1] bye\n")
    log(sessions, "2", "gcs_server.out", "[t E 1 1] a lesser one\n")
    os.utime(sessions / "ray" / f"session_2_{os.getpid()}", (1 << 32, 1 << 32))
    init, _, error = attempts(2)
    assert len(init.ports) == 2
    assert "startup. raylet.out: [t C 1 1] Timed out waiting for file x" in error
    assert "session_latest/logs" in error


def test_without_a_log_the_cause_is_what_ray_said(attempts) -> None:
    assert "Ray did not start: The current node timed out during startup." in attempts(2)[2]


@pytest.mark.parametrize("name", ["x" * 90, "x" * 60, "a b", "josé" * 12])
def test_sessions_are_elsewhere_where_rays_sockets_would_not_fit(attempts, name: str, tmp_path, monkeypatch) -> None:
    from orchestrator.cluster import ray_start

    short, folder = tempfile.mkdtemp(dir="/tmp"), tmp_path / name
    monkeypatch.setattr(ray_start, "_SHORT", ("/nowhere", short))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    _, said, error = attempts(0)
    assert (os.environ["RAY_TMPDIR"], error) == (short, "")
    assert said[-2].endswith(f"Ray's are in {short}/ray")
    _, said, _ = attempts(0)
    assert said == ["starting Ray"]  # it fits now
    os.rmdir(short)


def test_little_shared_memory_is_told(attempts, monkeypatch) -> None:
    from orchestrator.cluster import machine

    monkeypatch.setattr(machine, "shared_memory", lambda: 64 << 20)
    _, said, _ = attempts(0, object_store_memory=256 << 20)
    assert "64 MiB of shared memory are free" in said[0]
    assert "--shm-size" in said[0]


def test_whoever_waits_for_long_is_told_for_what(attempts, monkeypatch) -> None:
    from orchestrator.cluster import ray_start

    monkeypatch.setattr(ray_start, "_LONG_S", 0.0)
    _, said, _ = attempts(0, lambda said: wait_for(lambda: len(said) > 1))
    assert said == ["starting Ray", "waiting for Ray's raylet and agents: a busy machine takes minutes"]


def test_a_python_in_an_odd_folder_is_quoted_for_the_shell_that_ray_gives_it_to(attempts, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my (copy), josé #1/bin/python")
    init, _, _ = attempts(0)
    assert init.arguments["runtime_env"] == {"py_executable": "'/my (copy), josé #1/bin/python'"}


@pytest.mark.parametrize(
    ("home", "entry", "found", "token"),
    [
        ("{}/mine", "/other", "{}/mine", False),
        (None, "{}/entry", "{}/entry", False),
        ("", "{}/entry", "{}/entry", False),
        (None, None, "{}/own", False),
        ("/proc", None, "/proc", True),  # read-only
        ("/proc", "/proc", "/proc", True),
    ],
)
def test_users_without_a_name_or_a_home(attempts, home, entry, found, token, monkeypatch, tmp_path: Path) -> None:
    from orchestrator.cluster import ray_start

    def getpwuid(uid: int) -> object:
        if entry is None:
            raise KeyError(uid)
        return SimpleNamespace(pw_dir=entry.format(tmp_path))

    monkeypatch.setattr(ray_start.pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(ray_start.os, "access", lambda place, mode: str(place) != "/proc")  # root may write everywhere
    monkeypatch.setenv("ORCHESTRATOR_HOME", f"{tmp_path}/own")
    monkeypatch.setenv("HOME", (home or "").format(tmp_path))
    for name in ("USER", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", *(["HOME"] if home is None else [])):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)
    attempts(0)
    assert os.environ["HOME"] == found.format(tmp_path)
    assert ("USER" in os.environ) == (entry is None)
    assert ("RAY_AUTH_TOKEN" in os.environ) == token
