"""`python -m trbext` is `trb`, which is what `torchrun -m trbext train ...` needs."""

import sys

from .cli import main

sys.exit(main())
