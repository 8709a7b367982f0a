"""A script that outlives the process which starts it: `last_words.py PID MESSAGE` prints when process PID has ended."""

import sys
import time

import psutil


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    launcher, message = int(sys.argv[1]), sys.argv[2]
    print("watching", flush=True)
    deadline = time.monotonic() + 30
    while not has_ended(launcher) and time.monotonic() < deadline:
        time.sleep(0.02)
    if has_ended(launcher):
        print(message, file=sys.stderr)
