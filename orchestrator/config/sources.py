"""Where configurations come from: our conf/, and folders of a user's own, by --config-dir or Hydra's search path."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import open_dict
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config import CONF, AppConfig, ModelConfig, load, of_hydra
from orchestrator.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONFIG = "config"  # our conf/config.yaml


def search_path(hydra: HydraConf) -> list[str]:
    """The folders besides our own that a configuration was composed from, as Hydra's URIs, by precedence."""
    ours = {"pkg://hydra.conf", f"file://{CONF}"}
    found = [f"{s.schema}://{s.path}" for s in hydra.runtime.config_sources if s.schema != "structured"]
    return [uri for uri in found if uri not in ours]


def flags(hydra: HydraConf) -> list[str]:
    """What a command line needs for another process to find the same configurations."""
    found, more = [], []
    for source in hydra.runtime.config_sources:
        uri = f"{source.schema}://{source.path}"
        if source.provider == "main" and uri != f"file://{CONF}":
            found.append(f"--config-path={source.path}")
        elif source.provider == "command-line":
            found.append(f"--config-dir={source.path}")
        elif source.provider not in ("hydra", "main", "schema"):
            more.append(uri)
    if hydra.job.config_name not in (None, _CONFIG):
        found.append(f"--config-name={hydra.job.config_name}")
    return [*found, *_override(more)]


def quoted(text: str) -> str:
    """A text as the value of an override: Hydra takes it letter by letter, commas, quotes and spaces included."""
    return QuotedString(text, Quote.single).with_quotes()


def composed(overrides: Sequence[str]) -> AppConfig:
    """A checked configuration without a command line; `hydra.searchpath=[file:///…]` is known here too.

    Raises:
        ConfigError: it is not right.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(_CONFIG, overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise of_hydra(error) from error
    found = search_path(cfg.hydra)
    with open_dict(cfg):
        del cfg["hydra"]
    return load(cfg, found)


def model(name: str, folders: Sequence[str]) -> ModelConfig:
    """A model by the name of its file.

    Args:
        name: of `model/NAME.yaml` in our conf/ or in one of the folders; never a path.
        folders: as `search_path` gives them.

    Raises:
        ConfigError: there is none, or it is not right.
    """
    more = _override(folders)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        known = GlobalHydra.instance().config_loader().get_group_options(
            "model", config_name=_CONFIG, overrides=more
        )  # fmt: skip
    if not _NAME.fullmatch(name) or name not in known:
        where = ", ".join(["conf/model", *(f"{folder}/model" for folder in folders)])
        raise ConfigError(
            f"There is no model {name!r} in {where}.", where="serve.models", hint=f"There are {', '.join(known)}."
        )
    return composed([f"model={name}", *more]).model


def _override(folders: Sequence[str]) -> list[str]:
    return [f"hydra.searchpath=[{','.join(map(quoted, folders))}]"] if folders else []
