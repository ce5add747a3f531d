"""What JSON can hold, for tests that try all of it."""

from __future__ import annotations

import json

from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
"""Values of all of JSON's kinds."""

NAMES = ("add", "get_weather", "a-b_9")
"""The functions that can be called."""
ARGUMENTS = st.builds(
    lambda value, ascii, indent: json.dumps(value, ensure_ascii=ascii, indent=indent),
    st.dictionaries(st.text(max_size=8), VALUES, max_size=4),
    st.booleans(),
    st.none() | st.just(2),
)
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3)
"""Calls of them, each a name and arguments as JSON."""
