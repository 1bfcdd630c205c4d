"""Continue a text through DeepSpeed's inference engine, straight from a run's ZeRO checkpoint too.

python inference/ds_generate.py -m runs/demo "The"
python inference/ds_generate.py -m runs/demo/model --dtype bf16 "The"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano_ds.generate_script import main

if __name__ == "__main__":
    sys.exit(main(__doc__, deepspeed=True))
