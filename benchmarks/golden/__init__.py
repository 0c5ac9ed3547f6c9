"""The bytes before and after a refactor: what the public surface makes with fixed seeds, as files.

    python -m benchmarks.golden OUT                  makes the set, with the code that is imported, in a new folder
    python -m benchmarks.golden --compare OLD NEW    names every missing, extra or different file; exit code 1 if any
    python -m benchmarks.golden --read OLD OUT       reads the adapter files of the set OLD, and writes OUT/read, which
                                                     --compare OLD/read OUT/read holds against what OLD's code read

Only public names are used, so one copy runs on the code before and after files are moved. The ``studio`` of the folder
in which the command is called is the one that is tried, and the first line says which that is; ``PYTHONPATH`` lends
this package to a checkout that is older than it.

A case leaves its tensors in ``outputs.safetensors``, what was said (reports, refusals, warnings) in ``outputs.txt``,
and its adapter in every format. Folders are ``section/model/case``; ``read/`` has what came of every adapter file on a
fresh model. Making takes about three minutes.

Not in the set, because two runs differ in it: seconds, memory and rates in logs and on the command line (they are
replaced by ``#``, and left out of logs), the cache, and the states of interrupted runs. A ``.bin`` file holds the name
of a temporary file, so its tensors are compared, not its bytes. ``studio doctor`` describes the machine and ``studio
demo`` takes minutes: of both there is the help alone. The bytes are those of one machine and one set of packages, so
make both sets on the same.
"""

from __future__ import annotations

import os

# before a module of this package imports torch: one thread, no network, and a width for what is printed
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    COLUMNS="110",
    TERM="dumb",
)
