"""Every op in plain PyTorch: the ground truth of the kernels and their fallback. One file per family."""
