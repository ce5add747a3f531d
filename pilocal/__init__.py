"""Put a recurring prompt into the weights of a local model, prove that nothing was lost, ship it to llama.cpp."""

import logging

# peft and sentence-transformers import it where it is installed, and it recommends packages.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
