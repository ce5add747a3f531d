"""The page of a check: what a run will save, need and take, and what each stage asks."""
