"""llama.cpp, as everything else uses it."""
