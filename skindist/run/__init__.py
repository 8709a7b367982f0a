"""The run folder: who writes it, what it holds. Nothing here knows of processes or frameworks of processes."""
