"""skindist: distributed fine-tuning that tells malignant from benign skin lesions.

The public names stand, with their types, in `__init__.pyi`; each is imported when it is first used, so that
`import skindist` costs nothing.
"""

import os
import sys

import lazy_loader

if sys.platform == "win32":
    sys.exit(
        "error: skindist needs Linux or macOS. On Windows, run it in WSL2: https://learn.microsoft.com/windows/wsl"
    )

if "OMP_WAIT_POLICY" not in os.environ:
    # GNU OpenMP reads this when torch is imported. By default its threads spin for milliseconds while they wait for
    # each other, and starve themselves when another program uses a core. 1,000, which it takes itself where it knows of
    # more threads than cores, slows down a training that is alone.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
