"""A picture of how a step's time grows with the template, as SVG."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 64, 48, 40, 96


def growth_svg(result: dict[str, Any]) -> str:
    """Draw seconds a step over tokens of template, both logarithmic, for pilocal and mlx-lm."""
    lines: dict[str, list[tuple[int, float]]] = {"mlx-lm": [], "pilocal": []}
    for template, part in zip(result["template"], result["parts"], strict=True):
        for name, key in (("pilocal", "seconds"), ("mlx-lm", "mlx_lm_seconds")):
            if key in part:
                lines[name].append((template, median(part[key])))
    times = [seconds for line in lines.values() for _, seconds in line]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    first, last = math.log10(result["template"][0]), math.log10(result["template"][-1])

    def x(template: float) -> float:
        return LEFT + (math.log10(template) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(seconds: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(seconds) - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">Seconds a training step, batch 8</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">tokens of template</text>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for template in result["template"]:
        parts.append(f'<text x="{x(template):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{template:,}</text>')
    for (name, line), colour in zip(lines.items(), ("#888888", "#0a6ebd"), strict=True):
        points = " ".join(f"{x(template):.1f},{y(seconds):.1f}" for template, seconds in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x(t):.1f}" cy="{y(s):.1f}" r="4" fill="{colour}"/>' for t, s in line]
        template, seconds = line[-1]
        parts.append(f'<text x="{x(template) + 10:.1f}" y="{y(seconds) + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
