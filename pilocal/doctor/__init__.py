"""What this machine has, what is slow or missing, and the command that mends it."""
