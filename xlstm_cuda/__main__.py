"""``python -m xlstm_cuda {info,train,generate}``."""

import sys

from .cli import main

sys.exit(main())
