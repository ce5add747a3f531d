"""How an answer is scored; one file per metric."""
