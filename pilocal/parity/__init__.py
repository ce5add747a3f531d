"""Two backends side by side: the same rows, the same weights, the same losses within a stated tolerance."""
