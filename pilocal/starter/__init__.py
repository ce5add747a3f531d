"""The starter: a small bundled Llama that reads its prompt, and how it was made."""
