"""Fuzzing: every door through which something comes in that pilocal did not write, knocked at with broken inputs.

A door (`door.py`) says how a good input is made and how pilocal reads it; an input is files by their names. `mutate.py`
breaks inputs along their structure. `knock.py` gives one to a door and says what went wrong: an exception that is none
of pilocal's or Click's, a hang, a write outside of the folder, too much memory. `corpus.jsonl` holds an input for each
fault that was ever found; the test suite knocks with all of them, and with a fixed number of new ones per door.

`python -m tests.fuzz MINUTES [DOOR...]` is the long form; `python -m tests.fuzz --seed N DOOR` makes one input again.
"""
