"""deqlib's speed, accuracy and memory beside its peers: ``python -m benchmarks``."""
