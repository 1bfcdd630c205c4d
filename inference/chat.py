"""Talk with a model that was fine-tuned on the instruct template. An empty line or Ctrl-D ends it, Ctrl-C an answer.

python inference/chat.py -m MODEL [-l LORA]      # a model directory or a run: PyTorch; a model file: the C engine
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nano_ds.chat import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
