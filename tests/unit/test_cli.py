"""`python -m orchestrator cache`: what it shows, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import cache_command, main
from orchestrator.graph_cache import bundle
from orchestrator.graph_cache.store import Store


@pytest.fixture
def run(tmp_path: Path, capsys, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Two entries in a store, and a way to ask about them."""
    monkeypatch.setattr(cache_command.console, "width", 200)
    store, key_file = str(tmp_path / "graphs"), str(tmp_path / "signing.key")
    for name, torch in (("aa11", "2.13"), ("bb22", "2.14")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_bytes(name.encode())
        factors = {"vllm": "0.32.0", "torch": torch, "architecture": "Llama"}
        known = {"key": name, "factors": factors, "created": 1.0, "publisher": "replica-0"}
        data = bundle.pack(tmp_path, [tmp_path / name], bundle.signing_key(key_file), known)
        Store(store).save(name, 1, data)

    def ask(*words: str) -> tuple[int, str]:
        code = main.main(["cache", "--store", store, "--key-file", key_file, *words])
        found = capsys.readouterr()
        return code, found.out + found.err

    return ask


def test_ls_and_show(run) -> None:
    code, text = run("ls")
    assert code == 0
    assert all(word in text for word in ("aa11", "bb22", "Llama", "0.32.0", "replica-0"))
    code, text = run("show", "aa")
    assert code == 0
    assert json.loads(text)["factors"]["torch"] == "2.13"


def test_explain_names_the_factor_that_differs(run) -> None:
    code, text = run("explain", "aa")
    assert code == 0
    assert all(word in text for word in ("torch", "2.13", "2.14"))
    assert "0.32.0" not in text


def apart(ours: dict[str, str], theirs: dict[str, str], run, tmp_path: Path) -> list[list[str]]:
    """The rows of `explain` for two entries with these factors."""
    for name, factors in (("c0", ours), ("c1", theirs)):
        known = {"key": name, "factors": factors, "created": 1.0, "publisher": "replica-0"}
        data = bundle.pack(tmp_path, [], bundle.signing_key(str(tmp_path / "signing.key")), known)
        Store(str(tmp_path / "graphs")).save(name, 1, data)
    code, text = run("explain", "c0", "c1")
    assert code == 0
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]


def test_explain_names_settings_and_never_a_digest(run, tmp_path: Path) -> None:
    ours = {"vllm env": "0" * 64, "vllm config": "1" * 10, "inductor": "2" * 64}
    ours |= {"vllm env VLLM_MLA_DISABLE": "false", "vllm config cache_config.block_size": "16", "inductor dce": "true"}
    ours |= {"model config.json": "3" * 64, "plugin kv_pass.py": "4" * 64, "cpu features": "avx " * 40 + "avx"}
    theirs = {name: value.translate(str.maketrans("0123", "5678")) for name, value in ours.items()}
    theirs |= {"vllm env VLLM_MLA_DISABLE": "true", "vllm config cache_config.block_size": "32"}
    theirs |= {"inductor": ours["inductor"], "cpu features": f"{ours['cpu features']} avx512"}
    rows = apart(ours, theirs, run, tmp_path)
    assert rows == [
        ["cpu features", "nothing more", "avx512"],
        ["model config.json", "one content", "another"],
        ["vllm config cache_config.block_size", "16", "32"],
        ["vllm env VLLM_MLA_DISABLE", "false", "true"],
    ]


def test_explain_of_an_entry_that_names_nothing_yet(run, tmp_path: Path) -> None:
    ours = {"vllm env": "0" * 64, "vllm env VLLM_MLA_DISABLE": "false"}
    assert apart(ours, {"vllm env": "1" * 64}, run, tmp_path) == [["vllm env", "one content", "another"]]


def test_verify_tells_a_damaged_entry(run, tmp_path: Path) -> None:
    assert run("verify")[0] == 0
    (file,) = (tmp_path / "graphs" / "bb22").glob("*.bundle")
    file.write_bytes(file.read_bytes()[:-1])
    code, text = run("verify")
    assert code == 1
    assert "aa11 authentic" in text
    assert "bb22 REFUSED" in text
    assert run("verify", "aa11")[0] == 0


def test_evict_wants_to_know_what(run) -> None:
    assert run("evict")[0] == 2
    assert run("evict", "aa")[0] == 0
    assert run("show", "aa") == (
        2,
        "error: no entry's key begins with 'aa'. Hint: See `orchestrator cache ls`.\n",
    )
    assert run("evict", "--all")[0] == 0
    assert "Nothing in" in run("ls")[1]


def test_a_wrong_command_is_exit_code_2(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["cache", "lss"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
