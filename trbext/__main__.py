"""Runs `trb` as `python -m trbext`, which `torchrun -m trbext train ...` needs."""

import sys

from .cli import main

sys.exit(main())
