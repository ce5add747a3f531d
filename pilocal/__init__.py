"""Put a recurring prompt into the weights of a local model, prove that nothing was lost, ship it to llama.cpp."""
