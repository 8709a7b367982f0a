"""What several tests use: commands to start, ranks to fork, faults to put into them, servers to talk to."""
