"""What several tests use: commands to start, ranks to fork, faults to put into them, servers to talk to."""

import gc

gc.set_threshold(10_000)  # as for a command, and before the frameworks: they make a million objects that stay
