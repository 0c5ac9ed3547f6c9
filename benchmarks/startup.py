"""How long the studio takes to start: the front door over torch, and the command line's help.

Run it with ``python -m benchmarks.startup``. Each figure is the median over fresh processes, in seconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 10
COMMANDS = {
    "python alone": [sys.executable, "-c", ""],
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch, touch studio.attach and studio.LoRA": [
        sys.executable, "-c", "import torch, studio; studio.attach, studio.LoRA",
    ],
    "studio --help": [str(Path(sys.executable).with_name("studio")), "--help"],
}  # fmt: skip
LIMITS = {"front door over torch": 0.3, "studio --help": 0.5}


def seconds(command: list[str]) -> float:
    """Runs one process to its end and returns how long that took, in seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> int:
    """Prints the table; returns 1 where a limit is exceeded."""
    for command in COMMANDS.values():
        seconds(command)  # the first start compiles bytecode and reads the disk
    # interleaved, so that a busy moment of the machine falls on all of them
    rounds = [{name: seconds(command) for name, command in COMMANDS.items()} for _ in range(ROUNDS)]
    medians = {name: statistics.median(row[name] for row in rounds) for name in COMMANDS}
    touched = "import torch, touch studio.attach and studio.LoRA"
    medians["front door over torch"] = statistics.median(row[touched] - row["import torch"] for row in rounds)
    for name, median in medians.items():
        limit = f"  (limit {LIMITS[name]:.1f})" if name in LIMITS else ""
        print(f"{median:6.3f} s  {name}{limit}")
    return int(any(medians[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
