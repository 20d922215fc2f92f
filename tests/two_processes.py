"""Two processes of one group: every distributed row, in one pair of processes.

``python two_processes.py FOLDER RANK NAME...`` runs the named rows (of ``distributed_rows``) and
writes what came of each, as JSON. ``results`` starts the pair.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

SIZE = 2
#: Seconds that a collective may take, and the whole pair.
COLLECTIVE, WHOLE = 60, 300


def results(folder: Path, names: Sequence[str]) -> dict[str, dict[str, bool] | str]:
    """Row → columns that are the original's, over both ranks; or the traceback of the first."""
    command = [sys.executable, str(Path(__file__)), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for rank in range(SIZE):
        with (folder / f"log{rank}").open("w") as log:
            started.append(
                subprocess.Popen(
                    [*command, str(rank), *names], stdout=log, stderr=log, env=environment
                )
            )
    try:
        for process in started:
            process.wait(WHOLE)
    finally:
        for process in started:
            process.kill()
            process.wait()
    ranks = []
    for rank in range(SIZE):
        written = folder / f"rank{rank}.json"
        assert written.exists(), (folder / f"log{rank}").read_text()[-4000:]
        ranks.append(json.loads(written.read_text()))
    found: dict[str, dict[str, bool] | str] = {}
    for name in names:
        each = [rank.get(name, "not reached") for rank in ranks]
        failed = [one for one in each if isinstance(one, str)]
        found[name] = failed[0] if failed else {c: all(r[c] for r in each) for c in each[0]}
    return found


def main(folder: Path, rank: int, names: Sequence[str]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), SIZE)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=SIZE, timeout=timedelta(seconds=COLLECTIVE)
    )
    from distributed_rows import ROWS

    found: dict[str, dict[str, bool] | str] = {}
    for name in names:
        begun = time.perf_counter()
        try:
            found[name] = ROWS[name](rank, folder)
        except BaseException:
            found[name] = traceback.format_exc()
        print(name, found[name], f"{time.perf_counter() - begun:.1f} s", flush=True)
        (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
