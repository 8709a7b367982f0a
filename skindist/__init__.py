"""skindist: distributed fine-tuning that tells malignant from benign skin lesions.

The public names stand, with their types, in `__init__.pyi`; each is imported when it is first used, so that
`import skindist` costs nothing.
"""

import sys

import lazy_loader

if sys.platform == "win32":
    sys.exit(
        "error: skindist needs Linux or macOS. On Windows, run it in WSL2: https://learn.microsoft.com/windows/wsl"
    )

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
