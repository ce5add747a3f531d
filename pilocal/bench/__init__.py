"""What a request costs in llama.cpp, with the prompt and without, for one client and for many."""
