"""What the arms are called in tables."""

TITLES = {
    "base_query_only": "base, bare query",
    "base_full_prompt": "base, full prompt",
    "base_full_prompt_cached": "base, full prompt, warm prefix cache",
    "direct_drop": "trained with the full prompt, asked without",
    "internalized": "internalized, bare query (MLX)",
    "shipped": "shipped, bare query (llama.cpp)",
}
"""Every arm of metrics.json, in the order of the table."""
