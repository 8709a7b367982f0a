"""What `launch/benchmark.py` measures. Import it before torch: as in a training, threads are told how to wait, and each
is given a core. The process of a plain loop hears of the first alone."""

import multiprocessing

from skindist.cpu_threads import bind_threads
from skindist.launcher import this_launch

if multiprocessing.parent_process() is None:
    bind_threads(this_launch())
