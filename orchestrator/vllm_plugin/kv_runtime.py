"""Run time of the layer-index KV update: which layer a compiled piece updates, and the guard behind it.

A rewritten piece calls `orchestrator::kv_cache_update` without any layer name, so that all layers share one compiled
graph. The stitching code, which is not compiled, calls `enter_piece` before each such piece with the names of its
updates in call order; the forward context then gives the name by index. The stitching code also calls `check_layer`
before each attention op, with the name that the attention op itself is about to use.

State lives on vLLM's ForwardContext and is replaced at every piece, so that an exception in a forward, a context used
twice, micro-batches with a context each, and drafters with a compiled model of their own cannot mix up layers.
Source of the idea: vLLM issue 33267 and pull request 36007 (there: one index for the whole forward).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.library import Library
from vllm import forward_context
from vllm.model_executor.layers.attention import attention, mla_attention
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

from orchestrator.errors import LayerNameMismatch

# Part of every stitching code that names these functions; raise it when their meaning changes.
ABI = 1
_STATE = "orchestrator_kv"


class _Piece:
    """Progress through one compiled piece: names[:index] have been updated."""

    __slots__ = ("index", "names")

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.index = 0


def check_abi(abi: int) -> None:
    """Refuse stitching code made by another version of this module; vLLM then compiles again.

    Raises:
        RuntimeError: the artifact's ABI is not ours.
    """
    if abi != ABI:
        raise RuntimeError(f"compiled with layer-index ABI {abi}, this plugin has {ABI}")


def enter_piece(names: tuple[str, ...]) -> None:
    """Announce the layers whose KV cache the next compiled piece updates, in call order."""
    if forward_context.is_forward_context_available():
        setattr(forward_context.get_forward_context(), _STATE, _Piece(names))


def next_layer() -> str:
    """The layer that the running update belongs to; advances the index.

    Raises:
        LayerNameMismatch: the piece has more updates than its stitching code announced.
    """
    piece = getattr(forward_context.get_forward_context(), _STATE, None)
    if piece is None or piece.index >= len(piece.names):
        names = piece.names if piece else ()
        raise LayerNameMismatch(
            f"A KV-cache update ran beyond the {len(names)} that its graph announced.",
            updated=None,
            attended=list(names),
        )
    name: str = piece.names[piece.index]
    piece.index += 1
    return name


def check_layer(position: int, layer_name: Any) -> None:
    """Guard: the piece's update number `position` was for the layer that attention reads next.

    An index of 0 means that no Python ran in the piece (CUDA graph replay), which its capture has checked.

    Raises:
        LayerNameMismatch: it was for another layer, or the piece stopped half way.
    """
    known = forward_context.is_forward_context_available()
    piece = getattr(forward_context.get_forward_context(), _STATE, None) if known else None
    if piece is None or piece.index == 0:
        return
    attended = getattr(layer_name, "value", layer_name)
    updated = piece.names[position]
    if piece.index != len(piece.names) or updated != attended:
        raise LayerNameMismatch(
            f"The KV cache of {updated!r} was updated, but attention reads {attended!r} "
            f"({piece.index} of {len(piece.names)} updates ran).",
            updated=updated,
            attended=attended,
        )


def kv_cache_update(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`vllm::unified_kv_cache_update` for the next layer by index. Returns an empty tensor, for ordering."""
    return attention.unified_kv_cache_update(key, value, next_layer())


def mla_kv_cache_update(
    kv_c_normed: torch.Tensor, k_pe: torch.Tensor, kv_cache_dtype: str, k_scale: torch.Tensor
) -> torch.Tensor:
    """`vllm::unified_mla_kv_cache_update` for the next layer by index. Returns an empty tensor, for ordering."""
    return mla_attention.unified_mla_kv_cache_update(kv_c_normed, k_pe, next_layer(), kv_cache_dtype, k_scale)


def kv_cache_update_named(key: torch.Tensor, value: torch.Tensor, layer_name: str) -> torch.Tensor:
    """`vllm::unified_kv_cache_update` with the name baked into the graph: the `inline` baseline."""
    return attention.unified_kv_cache_update(key, value, layer_name)


def mla_kv_cache_update_named(
    kv_c_normed: torch.Tensor, k_pe: torch.Tensor, layer_name: str, kv_cache_dtype: str, k_scale: torch.Tensor
) -> torch.Tensor:
    """`vllm::unified_mla_kv_cache_update` with the name baked into the graph: the `inline` baseline."""
    return mla_attention.unified_mla_kv_cache_update(kv_c_normed, k_pe, layer_name, kv_cache_dtype, k_scale)


def _fake(first: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty(0, device=first.device, dtype=first.dtype)


_library = Library("orchestrator", "FRAGMENT")
for _op in (kv_cache_update, mla_kv_cache_update, kv_cache_update_named, mla_kv_cache_update_named):
    direct_register_custom_op(
        op_name=_op.__name__,
        op_func=_op,
        fake_impl=_fake,
        target_lib=_library,
        dispatch_key=current_platform.dispatch_key,
    )
