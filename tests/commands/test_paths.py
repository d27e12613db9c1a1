"""Where files go: with and without a home, with `~`, and what is told of a file system that refuses."""

from __future__ import annotations

import errno
import json
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import paths
from orchestrator.errors import ConfigError
from tests.unit.commands import ROOT
from tests.waiting import HANG_S

NOBODY = 987_654  # has no entry in /etc/passwd


def command(*words: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """`python WORDS...` without HOME, but for what is given."""
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "ORCHESTRATOR_HOME")}
    env |= {name: value for name, value in variables.items() if value is not None}
    shell = [sys.executable, *words]
    return subprocess.run(shell, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_S, check=False)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a job whose configuration is wrong."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["ok"] is False
    return errors[0]


@pytest.mark.parametrize(
    ("own", "home", "found"),
    [
        ("/x y", None, "/x y"),
        ("~/x", "/home/josé", "/home/josé/x"),
        (None, "/home/a b", "/home/a b/.cache/orchestrator"),
        ("", "/", "/.cache/orchestrator"),
        (None, "", f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/orchestrator"),
        (None, None, f"{pwd.getpwuid(os.getuid()).pw_dir}/.cache/orchestrator"),
    ],
)
def test_the_home(own: str | None, home: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ORCHESTRATOR_HOME", own), ("HOME", home)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert paths.home() == found


def test_a_user_without_a_home_is_told_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    for name in ("HOME", "ORCHESTRATOR_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="Set ORCHESTRATOR_HOME"):
        paths.home()
    monkeypatch.setenv("ORCHESTRATOR_HOME", "/x")
    assert paths.home() == "/x"


@pytest.mark.parametrize("words", [("jobs/run.py", "--cfg", "job", "--resolve"), ("-m", "orchestrator", "cache", "ls")])
def test_orchestrator_home_is_enough(words: tuple[str, ...], tmp_path: Path) -> None:
    done = command(*words, ORCHESTRATOR_HOME=str(tmp_path / "a b, josé"))
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout.replace("\n", "")


def test_every_path_of_a_configuration_may_begin_with_a_tilde(make_app, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    app = make_app("state_dir='~/s'", "batch.input='~/in'", "upload='~/up'", "serve.api_keys_file='~/k'")
    assert (app.state_dir, app.graph_cache.store) == ("/home/me/s", "/home/me/s/graphs")
    assert (app.batch.input, app.batch.output, app.upload) == ("/home/me/in", "", "/home/me/up")
    assert app.serve.api_keys_file == "/home/me/k"
    assert make_app("graph_cache.store='s3://~/x'").graph_cache.store == "s3://~/x"


@pytest.mark.parametrize(
    ("words", "said", "setting"),
    [
        (["hydra.run.dir={}/file/out"], "Not a directory", "hydra.run.dir"),
        (["hydra.run.dir={}/{long}"], "File name too long", "hydra.run.dir"),
        (["hydra.run.dir={}/out", "state_dir={}/file/state"], "Not a directory", "state_dir"),
        (["hydra.run.dir={}/out", "graph_cache.key_file={}/{long}"], "File name too long", "graph_cache.key_file"),
        (["hydra.run.dir={}/out", "state_dir={}/state", "graph_cache.store={}/file/x"], "ot a directory", "store"),
        (["-m", "hydra.sweep.dir={}/file/out", "replicas=1"], "Not a directory", "hydra.sweep.dir"),
    ],
)
def test_what_a_file_system_refuses_is_one_line(words: list[str], said: str, setting: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    given = [word.replace("{}", str(tmp_path)).replace("{long}", "n" * 300) for word in words]
    line = told(command("jobs/run.py", *given, "model=tiny_llama", "engine=fake", ORCHESTRATOR_HOME=str(tmp_path)))
    assert said in line
    assert setting in line


def test_other_commands_say_it_too(tmp_path: Path) -> None:
    done = command("-m", "orchestrator", "cache", "verify", ORCHESTRATOR_HOME=f"{tmp_path}/{'n' * 300}")
    assert done.returncode == 2
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


PLACES = {"/state": "state_dir", "/state/graphs": "graph_cache.store", "/tmp": "TMPDIR"}


@pytest.mark.parametrize(
    ("number", "file", "where"),
    [
        (errno.ENOSPC, "/state/graphs/a", "graph_cache.store"),
        (errno.EROFS, "/state/graphs-2", "state_dir"),
        (errno.EACCES, "/elsewhere", ""),
        (errno.EDQUOT, "/tmp/x", "TMPDIR"),
    ],
)
def test_the_setting_is_the_nearest_above_the_file(number: int, file: str, where: str) -> None:
    found = paths.refusal(OSError(number, "?", file), PLACES)
    assert found is not None
    assert found.where == where
    assert file in str(found)


def test_a_full_disk_is_found_where_the_error_names_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    assert paths.refusal(error, {str(tmp_path): "state_dir"}) is None  # there is room: it was elsewhere
    monkeypatch.setattr(paths, "_ROOM", 1 << 70)
    found = paths.refusal(error, {f"{tmp_path}/not/yet": "state_dir"})
    assert found is not None
    assert found.where == "state_dir"


def test_other_errors_are_what_they_are() -> None:
    for error in (ValueError("x"), FileNotFoundError(errno.ENOENT, "?", "/state/x"), PermissionError(errno.EPERM, "?")):
        assert paths.refusal(error, PLACES) is None


@pytest.mark.parametrize("name", ["x" * 200, "josé " * 20, "x"])
def test_a_socket_in_a_folder_with_a_long_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    path = paths.for_socket(str(folder / "listener"))
    assert len(os.fsencode(path)) <= paths.SOCKET
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        program = f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=HANG_S)
    assert (folder / "listener").is_socket()  # it goes with its folder
