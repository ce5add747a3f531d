"""What a run leaves on disk: one owner for every file."""
