"""llama.cpp behind an OpenAI-compatible HTTP API."""
