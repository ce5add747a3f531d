"""What a request costs in llama.cpp, with the prompt and without, for one client and for many."""

from pilocal.bench.files import bench

__all__ = ["bench"]
