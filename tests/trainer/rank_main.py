"""What torchrun starts in a test: a trainer that may be killed at a point.

The first argument has any number of ``rank:restart:name:nth:action``, separated by spaces (`tests.trainer.points`); the
others are those of ``headrace train``.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    import kernels.odds.arrays
    import trainer.__main__
    from tests.trainer import points
    from tests.trainer.process_factory import PAIR_ROWS

    kernels.odds.arrays.PAIR_ROWS = PAIR_ROWS
    here = f"{os.environ['RANK']}:{os.environ['TORCHELASTIC_RESTART_COUNT']}:"
    for each in sys.argv[1].split():
        if each.startswith(here):
            points.install(each.removeprefix(here))
    sys.exit(trainer.__main__.main(sys.argv[2:]))
