"""Has anything in this process initialised the CUDA driver? A fork of one that has is broken."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

_LOADED = re.compile(r"(/\S*/libcuda\.so\S*)")
_NOT_INITIALIZED = 3  # CUDA_ERROR_NOT_INITIALIZED


def initialised() -> str:
    """What the driver that is loaded here says if it is not untouched, else "".

    torch knows only of its own use, and only the driver's own answer tells of an attempt that failed.
    """
    for path in sorted(set(_LOADED.findall(Path("/proc/self/maps").read_text()))):
        driver, number = ctypes.CDLL(path), ctypes.c_int()
        said = driver.cuDeviceGetCount(ctypes.byref(number))
        if said != _NOT_INITIALIZED:
            return f"the CUDA driver {path} answers {said}, not {_NOT_INITIALIZED} (not initialised)"
    return ""
