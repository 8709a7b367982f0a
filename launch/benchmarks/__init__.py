"""What `launch/benchmark.py` measures: the data path, the steps, new processes, and other trainers beside ours."""
