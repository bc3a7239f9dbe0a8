"""Triton kernels of cfmvit; installed as ``cfmvit.triton_kernels``."""
