"""The main job: fine-tune on a folder of skin lesions, as one process or as one of many.

accelerate launch --config_file accelerate_config.yaml launch/train.py --data.path DIR
accelerate launch --config_file accelerate_config.yaml --num_processes 4 launch/train.py --data.path DIR
python launch/train.py --data.path DIR
"""

import sys

from skindist.cli import train

if __name__ == "__main__":
    sys.exit(train())
