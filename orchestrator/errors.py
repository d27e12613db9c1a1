"""Typed errors, each with fields a program can read and one line a person can act on.

Every error survives pickling through Ray: its fields are its constructor arguments.
"""

from __future__ import annotations

from typing import Any


class OrchestratorError(Exception):
    """Base of every error this package raises on purpose.

    Attributes:
        hint: what the user can do about it, or "".
    """

    def __init__(self, message: str, *, hint: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.fields = fields

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(name)

    def __str__(self) -> str:
        return f"{self.message} Hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.fields))


def _rebuild(kind: type[OrchestratorError], message: str, hint: str, fields: dict[str, Any]) -> Exception:
    return kind(message, hint=hint, **fields)


class ConfigError(OrchestratorError, ValueError):
    """The user's configuration is wrong; nothing was started. Field: where (the setting's name)."""


class ModelError(ConfigError):
    """A model's folder is not there, is not whole, or could not be made. Fields: model, where."""


class PlacementError(OrchestratorError):
    """The cluster cannot hold a replica, or did not in time. Fields: replica, bundles."""


class ClusterError(OrchestratorError):
    """A local Ray did not start."""


class EngineStartError(OrchestratorError):
    """An engine did not come up. Fields: replica, phase, cause (the root cause's last line)."""


class EngineDeadError(OrchestratorError):
    """An engine died while it served. Fields: replica."""


class ReplicaError(OrchestratorError):
    """A replica actor died or did not answer. Fields: replica, phase."""


class ReplicaCallError(ReplicaError):
    """A replica that lives could not do what it was asked, as for a prompt that is too long. As above."""


class ServeError(OrchestratorError):
    """A service did not come up, or failed."""


class ArtifactRefused(OrchestratorError):
    """A compiled artifact was not authentic or not safe, and was not loaded. Field: reason."""


class LayerNameMismatch(OrchestratorError):
    """A KV-cache update resolved to another layer than the attention after it. Fields: updated, attended."""


def one_line(error: BaseException) -> str:
    """Another library's error in a line of ours: its type and text, 500 characters at most."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
