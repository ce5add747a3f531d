"""Requests sorted by the prompts that they repeat, before it is known what exactly they repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pilocal.logs.exchange import Exchange
from pilocal.logs.units import units_of, word_count

FEWEST = 3
"""Requests that a template has at least."""

LEAST_SHARE = 0.02
"""Of the requests: what fewer repeat is no template."""

ALIKE = 0.5
"""The share of two requests' recurring words that they have in common if they are of one family."""

PROMPT = 12
"""Recurring words in a user's turn from which they are taken for a prompt and not for a way to ask."""

EDGE = 6
"""Words of a message's beginning and end by which prompts of one sentence are told apart."""

SHORT_EDGE = 3
"""The same of a system message of a few words."""

EDGE_SHARE = 0.2
"""Of the turns that begin alike, if that beginning is a prompt."""

Feature = tuple[str, str]
"""Where a unit stands, and the unit."""


def fewest(count: int) -> int:
    """Return how many of so many requests must have a prompt, if it is a template."""
    return max(FEWEST, round(LEAST_SHARE * count))


def families(rows: Sequence[Exchange]) -> list[list[int]]:
    """Return the numbers of the rows of each family, the largest first."""
    weights = _recurring(rows)
    features = [frozenset(feature for feature in _features(row) if feature in weights) for row in rows]
    features = [_without_asking(found, weights) for found in features]
    home = _homes(Counter(features), weights)
    members: dict[int, list[int]] = {}
    for number, found in enumerate(features):
        members.setdefault(home[found], []).append(number)
    return sorted(members.values(), key=lambda numbers: (-len(numbers), numbers[0]))


def _homes(counts: Counter[frozenset[Feature]], weights: dict[Feature, int]) -> dict[frozenset[Feature], int]:
    """Return the number of the family of each set of features."""
    totals = {found: _weight(found, weights) for found in counts}
    leaders: list[frozenset[Feature]] = []
    home: dict[frozenset[Feature], int] = {}
    for found in sorted(totals, key=lambda found: (-counts[found], -totals[found], sorted(found))):
        for number, leader in enumerate(leaders):
            most = max(totals[found], totals[leader])
            if most == 0 or _weight(found & leader, weights) >= ALIKE * most > 0:
                home[found] = number
                break
        else:
            home[found] = len(leaders)
            leaders.append(found)
    return home


def _weight(found: frozenset[Feature], weights: dict[Feature, int]) -> int:
    return sum(weights[feature] for feature in found)


def _features(row: Exchange) -> set[Feature]:
    """Return the units of a request's system message and first turn, and the edges of that turn."""
    system, user = units_of(row.system), units_of(row.first)
    found = {("user", unit.key) for unit in user} | _edges("", row.first)
    if len(system) > 1:
        return found | {("system", unit.key) for unit in system}
    edges = _edges("system ", row.system) or _edges("system ", row.system, SHORT_EDGE)
    return found | (edges or {("system", unit.key) for unit in system})


def _edges(place: str, text: str, edge: int = EDGE) -> set[Feature]:
    words = text.split()
    if len(words) < 2 * edge:
        return set()
    return {(f"{place}begins", " ".join(words[:edge])), (f"{place}ends", " ".join(words[-edge:]))}


def _recurring(rows: Sequence[Exchange]) -> dict[Feature, int]:
    """Return the features that many requests have, each with its words."""
    system, user = Counter[Feature](), Counter[Feature]()
    asked = set[str]()
    for row in rows:
        found = _features(row)
        system.update(feature for feature in found if feature[0].startswith("system"))
        if row.first not in asked:  # a question that many ask is no prompt
            asked.add(row.first)
            user.update(feature for feature in found if not feature[0].startswith("system"))
    least: dict[str, float] = {"system": fewest(len(rows)), "user": fewest(len(asked))}
    least |= dict.fromkeys(("system begins", "system ends"), fewest(len(rows)))
    least |= dict.fromkeys(("begins", "ends"), max(FEWEST, EDGE_SHARE * len(asked)))
    counts = system + user
    return {
        (place, text): PROMPT if place.endswith(("begins", "ends")) else max(1, word_count(text))
        for (place, text), count in counts.items()
        if count >= least[place]
    }


def _without_asking(found: frozenset[Feature], weights: dict[Feature, int]) -> frozenset[Feature]:
    """Return the features without the user's where these are too few words to be a prompt."""
    system = frozenset(feature for feature in found if feature[0].startswith("system"))
    return found if _weight(found - system, weights) >= PROMPT else system
