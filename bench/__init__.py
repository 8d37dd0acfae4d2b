"""How fast the operations are on this machine, next to what users have today."""

import os

# OpenMP's threads spin while they wait unless told otherwise before torch is imported, and crawl beside other processes.
# (xlstm_cuda/cli/sharing.py does it for the package's own commands; here nothing of the package may be imported.)
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
if not any(name in os.environ for name in WAITING):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
