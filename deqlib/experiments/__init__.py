"""The experiments of the paper, as protocols that one command runs again.

    python -m deqlib experiments                       all of them, with the paper's seeds
    python -m deqlib experiments linear --seeds 100    one of them, with a hundred seeds

`PROTOCOLS` holds them by name; each is called as ``PROTOCOLS["linear"](variant, seed, steps)`` and
returns its records. The protocols are those of the authors' public repository (single-index-deq,
the code and saved results of the paper's appendix), written anew.
"""

from deqlib.experiments import backward, explicit, scalar_linear, sigmoid, weak
from deqlib.experiments.protocol import Protocol, Record

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for module in (scalar_linear, sigmoid, explicit, backward, weak)
    for protocol in module.PROTOCOLS
}
"""Every protocol by name, in the order of the chapter."""

__all__ = ["PROTOCOLS", "Protocol", "Record"]
