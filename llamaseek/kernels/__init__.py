"""Kernels for the few tokens of a decoding step, in C++ for CPUs, with PyTorch fallbacks.

Each is an operator of the library `llamaseek`. Its fallback is written in PyTorch and runs
anywhere; `build.start` compiles the C++ files in the background, and once they are loaded they
take the fallbacks' place on CPU tensors.
"""
