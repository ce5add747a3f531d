"""Comparing: every way of answering a task, side by side, over several seeds, in one table.

>>> from pilocal.comparison import Design, compare, parse_arms
>>> design = Design(arms=parse_arms(("linear", "direct")), seeds=(0,))
>>> [arm.name for arm in design.arms]
['query-only', 'full-prompt', 'linear', 'direct']

`compare("my-task", design)` then leaves compare.json and compare.md in my-task/compare.
"""

from pilocal.comparison.arms import parse_arms
from pilocal.comparison.design import Design
from pilocal.comparison.files import compare
from pilocal.flow.saving import Prices

__all__ = ["Design", "Prices", "compare", "parse_arms"]
