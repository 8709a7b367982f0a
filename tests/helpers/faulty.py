"""launch/train.py with a fault:

FAULT='["kill", 1, 4]' accelerate launch ... tests/helpers/faulty.py ...     (what, on which rank, before which step)
"""

import os
import sys

from tests.helpers import faults  # a script of its own: so the package comes first, and says how garbage is looked for

if __name__ == "__main__":
    sys.exit(faults.train_with(os.environ["FAULT"]))
