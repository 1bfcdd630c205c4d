"""The C engine (`runtime_c`) from Python, through ctypes: the same library that boards and the browser run.

    from nano_ds.libnano import Adapter, Model, Session
    from nano_ds.sampling import SamplerParams

    with Model.open("model.bin") as model, Session(model) as session:
        for piece in session.generate("Once upon a time", max_new=50, params=SamplerParams(seed=7)):
            print(piece.text, end="", flush=True)

``make -C runtime_c`` builds the library; ``NANO_LIB`` may name one that lies elsewhere. No PyTorch is needed.

Threads: a model and an adapter may be used by any number of threads at once; a session belongs to one thread at a time
and says so when two meet in it. Calls release the interpreter's lock, so sessions in several threads compute at once. A
session does not live on in a process that was forked from its own; models do.
Lifetimes: a session keeps its model and adapter alive, whatever is closed or dropped first. What is still open when the
interpreter ends goes with the process.
"""

from nano_ds.libnano.model import Adapter, AdapterConfig, Config, Model
from nano_ds.libnano.native import library
from nano_ds.libnano.session import Piece, Session, Stats
from nano_ds.libnano.tokenizer import ModelTokenizer

__all__ = ["Adapter", "AdapterConfig", "Config", "Model", "ModelTokenizer", "Piece", "Session", "Stats", "library"]
