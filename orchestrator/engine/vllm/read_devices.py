"""Print what torch knows of each GPU that this process sees, as one line of JSON; a program, run as a file.

It initialises CUDA, which the zygote must not, and ends. It imports nothing of ours, so that it needs no path to it.
"""

from __future__ import annotations

import json
from typing import Any

import torch


def facts(properties: Any) -> dict[str, Any]:
    """A device's properties; what is no plain value, such as its UUID, as text."""
    values = {name: getattr(properties, name) for name in dir(properties) if not name.startswith("_")}
    return {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in values.items()
        if not callable(value)
    }


if __name__ == "__main__":
    print(json.dumps([facts(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]))
