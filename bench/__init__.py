"""Kernel microbenchmarks; installed as ``cfmvit.bench``, run by ``cfmvit bench`` or ``python -m bench``."""
