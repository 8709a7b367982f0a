"""timm's train.py, which its package does not hold: it is downloaded. At its best in bfloat16 and channels-last,
with a loader worker for each core."""

import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import timm
import torch
from common import job, workers

asked = job()
script = Path(tempfile.mkdtemp(), "train.py")
address = f"https://raw.githubusercontent.com/huggingface/pytorch-image-models/v{timm.__version__}/train.py"
try:
    script.write_bytes(urllib.request.urlopen(address, timeout=30).read())
except OSError as error:
    sys.exit(f"{address}: {error}")
device = "cuda" if torch.cuda.is_available() else "cpu"
command = [
    *(sys.executable, str(script), "--data-dir", str(asked.folder), "--model", "efficientnet_b0", "--num-classes", "2"),
    *("--img-size", str(asked.size), "-b", str(asked.batch), "--epochs", str(asked.epochs), "--opt", "adadelta"),
    *("--lr", "0.1", "--device", device, "--output", str(script.parent), "--log-interval", "1"),
    *(("--amp", "--amp-dtype", "bfloat16", "--channels-last", "-j", str(workers(asked))) if asked.best else ()),
]
said = subprocess.run(command, capture_output=True, text=True)
speeds = re.findall(r"\([\d.]+s,\s*([\d.]+)/s\)", said.stdout + said.stderr)  # at each step, the epoch's mean so far
print(speeds[-1] if said.returncode == 0 and speeds else sys.exit(said.stderr.strip().splitlines()[-1]))
