"""``cfmvit demo``: the whole path on generated data, and a page to look at."""

from cfmvit.demo.run import demo

__all__ = ["demo"]
