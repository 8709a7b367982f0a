"""`python -m skindist COMMAND`, for launchers: accelerate launch ... -m skindist evaluate MODEL DATA --out DIR"""

import sys

from skindist.cli import main

if __name__ == "__main__":
    sys.exit(main())
