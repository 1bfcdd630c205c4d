"""Text to token shards: find the documents, encode them in several processes, write a set.

The main process cuts the input into documents and hands them out in batches of about a megabyte; workers check and
encode them; the main process writes what comes back, in order. So the result is the same for any number of workers, and
memory stays at a few batches however large the files are.

    documents  the input as a stream of batches      parts  a share of that stream, encoded, to be joined later
    encoding   batches to tokens                     cluster, node  the parts on several machines
    sets       tokens to a set of shards           items, packing, sft  questions and answers to a set
"""

from nano_ds.prepare.cluster import prepare_on_nodes
from nano_ds.prepare.documents import DOCUMENT_BYTES, batch_texts, find_sources, read_batches, read_documents
from nano_ds.prepare.parts import Part, join_parts, prepare_part
from nano_ds.prepare.sets import Result, prepare_set
from nano_ds.prepare.sft import prepare_sft

__all__ = [
    "DOCUMENT_BYTES",
    "Part",
    "Result",
    "batch_texts",
    "find_sources",
    "join_parts",
    "prepare_on_nodes",
    "prepare_part",
    "prepare_set",
    "prepare_sft",
    "read_batches",
    "read_documents",
]
