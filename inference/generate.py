"""Continue a text with a model, in PyTorch or in C: the same text for one seed.

python inference/generate.py -m runs/demo/model "The"
python inference/generate.py -m runs/demo/model -t 0 -n 100 --profile "def main"
python inference/generate.py -m runs/demo -i "Who are you?"      # straight from a run, with the instruct template
python inference/generate.py -m runs/demo/model.bin "The"       # a model file: the C engine
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano_ds.generate_script import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
