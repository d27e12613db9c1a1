"""A user's own folder of models and engines, as --config-dir and hydra.searchpath take it."""

from __future__ import annotations

from pathlib import Path

MODEL = """\
defaults:
  - tiny_llama
  - _self_
name: mine
tiny:
  num_hidden_layers: 2
"""
ENGINE = """\
defaults:
  - fake
  - _self_
max_num_seqs: 3
"""


def make(folder: Path) -> Path:
    """model/mine.yaml and engine/mine.yaml, each a variation of ours."""
    for group, content in (("model", MODEL), ("engine", ENGINE)):
        (folder / group).mkdir(parents=True)
        (folder / group / "mine.yaml").write_text(content)
    return folder
