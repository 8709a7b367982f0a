"""A training for each fold and seed, and one ensemble of all of them.

python launch/folds.py --folds 5 --seeds 3 --out DIR --data.path lesions
python launch/folds.py --folds 5 --out DIR -- \\
    accelerate launch --config_file accelerate_config.yaml --num_processes 2 launch/train.py --data.path lesions

`skindist folds` is the same.
"""

import sys

from skindist.cli import main

if __name__ == "__main__":
    sys.exit(main(["folds", *sys.argv[1:]]))
