"""A sweep whose cells start no engine: each is a process that does what `+engine.extra.stub` says (see `CELLS`).

`python tests/commands/stub_sweep.py -m ...` is `python jobs/sweep.py -m ...` but for that.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser


def cell(job: str, *overrides: str) -> None:
    """What `python -m orchestrator JOB FLAGS... OVERRIDES...` is for the sweep."""
    parsed = OverridesParser.create().parse_overrides([word for word in overrides if not word.startswith("--")])
    said = {o.key_or_group: str(o.value()) for o in parsed}
    folder = Path(said["hydra.run.dir"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stub.json").write_text(
        json.dumps({"job": job, "words": overrides, "cores": sorted(os.sched_getaffinity(0))})
    )
    CELLS[said.get("engine.extra.stub", "well")](folder, said)


def well(folder: Path, said: Mapping[str, str]) -> None:
    """A run of one replica; how soon it was is in its configuration, for sweepers that optimise."""
    seconds = {"first": 9.0, "second": float(said.get("engine.max_num_seqs", "4"))}
    result = {"ok": True, "same_tokens": True, "second_replica": None, "first_token_s": seconds}
    result |= {"tokens_per_s": 5.0, "ttft_s": 0.1}
    config = {"model": {"name": "m"}, "fast_cold_start": True, "cold_start": {"kv_update": "layer_index"}}
    phases = [{"name": "process", "start": 0.0, "seconds": 9.0}]
    replica = {"replica": "replica-0", "first_token_s": 9.0, "receipt": {"outcome": "compiled"}, "phases": phases}
    answer = {"prompt": "p", "text": "t", "token_ids": [1, 2]}
    machine = {"cpu": "x", "cores": 2, "memory_gib": 1.0, "python": "3", "versions": {}}
    whole = {"config": config, "machine": machine, "command": "stub", "replicas": [replica], "same_tokens": True}
    whole["answers"] = {"replica-0": [answer]}
    (folder / "result.json").write_text(json.dumps({**result, **whole}))
    print("RESULT " + json.dumps(result))


def fails(folder: Path, said: Mapping[str, str]) -> None:
    print("RESULT " + json.dumps({"ok": False, "error": "out of stub memory"}))
    sys.exit(1)


def wrong(folder: Path, said: Mapping[str, str]) -> None:
    print("RESULT " + json.dumps({"ok": False, "error": "a wrong setting"}))
    sys.exit(2)


def lies(folder: Path, said: Mapping[str, str]) -> None:
    """Well, by its last line; and not by its exit code."""
    well(folder, said)
    sys.exit(7)


def torn(folder: Path, said: Mapping[str, str]) -> None:
    print('RESULT {"ok": tr')
    sys.exit(1)


def unlike(folder: Path, said: Mapping[str, str]) -> None:
    """Figures the first time, and a failure; then killed."""
    if (folder / "killed").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "killed").touch()
    well(folder, said)
    sys.exit(1)


def shouts(folder: Path, said: Mapping[str, str]) -> None:
    print("RESULT " + json.dumps({"ok": False, "error": "[/x] of [bold]x :smile: \udc80"}))
    sys.exit(1)


def silent(folder: Path, said: Mapping[str, str]) -> None:
    sys.exit(3)


def killed(folder: Path, said: Mapping[str, str]) -> None:
    """Only the first time."""
    if not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    well(folder, said)


def hangs(folder: Path, said: Mapping[str, str]) -> None:
    with (folder / "began").open("a") as file:
        file.write("began\n")
    time.sleep(1e6)


def meets(folder: Path, said: Mapping[str, str]) -> None:
    """Ends when two cells have begun: one after the other, they would wait for ever."""
    (folder.parent / f"here-{folder.name}").touch()
    while len(list(folder.parent.glob("here-*"))) < 2:
        time.sleep(0.05)
    well(folder, said)


CELLS = {f.__name__: f for f in (well, fails, wrong, lies, torn, unlike, shouts, silent, killed, hangs, meets)}

if __name__ == "__main__":
    if sys.argv[1] == "cell":
        cell(*sys.argv[2:])
    else:
        from omegaconf import OmegaConf

        from orchestrator.cli import cell as cells
        from orchestrator.cli import main

        cells.command = lambda job: [sys.executable, __file__, "cell", job]
        # a deadline for cells that hang alone: no other one has to be fast
        OmegaConf.register_new_resolver("if_hangs", lambda stub, limit: float(limit) if stub == "hangs" else None)
        main.job("sweep")
