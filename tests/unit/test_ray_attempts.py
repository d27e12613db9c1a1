"""A Ray that does not start is started once more, and then told about by its own log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.errors import ClusterError


class Attempts:
    """Stands for `ray.init`: fails as often as told, and notes the ports that Ray's agents would get."""

    def __init__(self, failures: int) -> None:
        self.failures, self.ports = failures, []

    def __call__(self, **arguments: object) -> None:
        from orchestrator.cluster import ray_start

        parameters = ray_start.ray._private.parameter.RayParams()
        self.ports.append([getattr(parameters, name) for name in ray_start.AGENT_PORTS])
        if len(self.ports) <= self.failures:
            raise RuntimeError("The current node timed out during startup.")


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from orchestrator.cluster import ray_start

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(ray_start.ray, "shutdown", lambda: None)

    def attempt(failures: int) -> tuple[Attempts, list[str], str]:
        init, said = Attempts(failures), []
        monkeypatch.setattr(ray_start.ray, "init", init)
        try:
            ray_start.start(lambda who, what: said.append(what), num_cpus=1)
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


def test_the_second_failure_has_its_cause_from_rays_log(attempts, tmp_path: Path) -> None:
    log(tmp_path, "1", "raylet.err", "[t C 1 1] an older session's\n")
    os.utime(tmp_path / "ray" / f"session_1_{os.getpid()}", (1, 1))
    log(tmp_path, "2", "raylet.out", "[t I 1 1] all well\n[t C 1 1] Timed out   waiting for file x\n[t I 1 1] bye\n")
    log(tmp_path, "2", "gcs_server.out", "[t E 1 1] a lesser one\n")
    os.utime(tmp_path / "ray" / f"session_2_{os.getpid()}", (1 << 32, 1 << 32))
    init, _, error = attempts(2)
    assert len(init.ports) == 2
    assert "startup. raylet.out: [t C 1 1] Timed out waiting for file x" in error
    assert "session_latest/logs" in error


def test_without_a_log_the_cause_is_what_ray_said(attempts) -> None:
    assert "Ray did not start: The current node timed out during startup." in attempts(2)[2]
