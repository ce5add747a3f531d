"""Chat templates are programs from the net: bounded in time and memory, and else what transformers makes of them."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from pilocal.base.base import Base
from pilocal.errors import ModelError
from pilocal.prompt.bounded_jinja import ChatProgram, chat_program, parsed
from pilocal.prompt.jinja_values import WORK, TooMuch, weight
from pilocal.prompt.settle import settle
from tests.layouts import LAYOUTS, write_layout

NEST = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDS = "{% endfor %}" * 3
GROW = "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}"
LAUGH = "{% set ns = namespace(x='aa') %}{% for i in range(60) %}"
BIG = "{% set a = 'a' * 10**7 %}{% set b = 'a' * 10**7 %}"
HOSTILE = {
    "loops": NEST + ENDS,
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "a text times": "{{ 'a' * 10**9 }}",
    "times a text": "{{ 10**9 * 'a' }}",
    "a list times": "{{ ([0] * 10**9) | length }}",
    "a power": "{{ 10 ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled by +": GROW + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by ~": GROW + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled by a block": GROW + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "lists in lists": LAUGH + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "objects in objects": LAUGH + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "namespaces in lists": LAUGH + "{% set ns.x = namespace(a=[ns.x, ns.x]) %}{% endfor %}{{ ns.x == ns.x }}",
    "a namespace in itself": "{% set ns = namespace(a=1) %}{% set ns.a = [ns] %}{{ [ns] | tojson }}",
    "a wide %": "{{ '%999999999d' % 1 }}",
    "a given width": "{{ '%*d' % (999999999, 1) }}",
    "a wide format": "{{ '{:>999999999}'.format(1) }}",
    "a given format": "{{ '{:{}}'.format(1, 999999999) }}",
    "a wide filter": "{{ '%999999999d' | format(1) }}",
    "many values": "{{ ('{0}' * 9000).format('a' * 10000) }}",
    "center": "{{ 'x' | center(10**9) }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ 'x\ny' | indent(10**9) }}",
    "replace": BIG + "{{ a | replace('a', b) }}{{ a.replace('a', b) }}",
    "join": BIG + "{{ a.join(b) }}",
    "the filter join": "{% set b = 'a' * 10**6 %}{{ b | join(b) }}",
    "a slow search": "{% set a = 'a' * 10**6 %}" + NEST + "{{ a.rfind('b' + a[:9999]) }}" + ENDS,
    "comparisons": BIG + NEST + "{% if a == b %}{% endif %}" + ENDS,
    "changes": BIG + NEST + "{{ loop.changed(a if c is odd else b) }}" + ENDS,
    "sorting": "{% set n = namespace(a=1) %}{% set m = namespace(a=1) %}{% set all = [n, m] * 50000 %}"
    + BIG
    + "{% set n.a = a %}{% set m.a = b %}{{ all | sort(attribute='a') | length }}",
    "endless recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "wide recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "tojson": "{{ [1, [2]] | tojson(indent=10**9) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "output": BIG + NEST + "{{ a }}" + ENDS,
    "a macro's output": BIG + "{% macro m() %}" + NEST + "{{ a }}" + ENDS + "{% endmacro %}{{ m() }}",
    "split": "{{ ('a ' * 10**7).split() | length }}",
    "title": "{{ ('a ' * 10**7) | title }}",
    "list": "{{ ('a\u1234' * 10**7) | list | length }}",
    "map": "{{ range(99999) | map('replace', '1', 'x' * 10**6) | list | length }}",
    "sums of lists": "{{ ([[1]] * 99999) | sum(start=[]) | length }}",
    "dates": "{{ strftime_now('%c' * 10**6) }}",
    "no number": "{{ 1 / 0 }}",
    "another file": "{% include 'x' %}",
    "Python": "{{ ''.__class__.__mro__ }}",
    "half a pair": "{{ '\\ud800' }}",
    "brackets": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "conditions": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "loops in loops": "{% for a in b %}" * 100 + "{% endfor %}" * 100,
    "a chain": "{{ a" + ".b" * 40000 + " }}",
    "filters": "{{ a" + "|e" * 40000 + " }}",
    "sums": "{{ 1" + "+1" * 40000 + " }}",
    "too long": "{{ a }}" * 40000,
    "cut off": "{{ a ",
}
"""Each would take hours or gigabytes, or is no program."""


@pytest.fixture
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a chat template do a thirtieth of what it may, so that the tests are cheap; `BIG` still fits."""
    monkeypatch.setattr("pilocal.prompt.bounded_jinja.WORK", WORK // 4)


@pytest.mark.usefixtures("little_work")
@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_chat_template_is_refused_in_bounded_time_and_memory(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((TemplateError, ValueError, TypeError)):
        ChatProgram(HOSTILE[name]).render(messages=[{"role": "user", "content": "x"}])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < (2**29 if resource.getpagesize() == 2**14 else 2**19), "more than 512 MiB"


@pytest.mark.parametrize("name", ["brackets", "conditions", "a chain", "filters", "sums", "too long", "cut off"])
def test_a_chat_template_that_cannot_be_compiled_cannot_be_settled_either(name: str) -> None:
    with pytest.raises((TemplateError, ValueError, TypeError)):
        settle(HOSTILE[name], bos="", eos="")
    if name not in ("a chain", "filters", "sums"):  # these are read, and are too deep to be written as Python
        with pytest.raises(TemplateError):
            parsed(HOSTILE[name])


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_a_chat_template_writes_what_it_writes_in_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = LAYOUTS[name].template
    said = [
        ("system", "Be brief.\n"),
        ("user", " a  <b> 'c' \u00e9\U0001f600"),
        ("assistant", "x\n\ny"),
        ("user", "{{ z }}"),
    ]
    chat = [{"role": role, "content": content} for role, content in said]
    known = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    for messages in (chat[1:2], chat[1:3], chat[1:], chat[:2], chat):
        for add in (True, False):
            fields: dict[str, Any] = {"messages": messages, "add_generation_prompt": add, **known}
            assert _told(lambda fields=fields: chat_program(template).render(**fields)) == _told(
                lambda fields=fields: _compile_jinja_template(template).render(**fields)
            )


def _told(write: Any) -> str:
    try:
        return str(write())
    except (TemplateError, ValueError, TypeError) as error:
        return f"refused: {error}"


def test_what_chat_templates_do_is_done() -> None:
    text = (
        "{% macro one(m) %}{{ '<' ~ m.role ~ '>' + m['content'] | trim }}{{ caller() if caller else '' }}{% endmacro %}"
        "{%- for m in messages if m.role != 'tool' %}{% if loop.index0 == 2 %}{% break %}{% endif %}"
        "{% generation %}{{ one(m) }}{% endgeneration %}{{ loop.length }}{{ loop.last }}{% endfor %}"
        "{{ tools | tojson(indent=2) }}{{ '%s-%d' % ('a', 2) }}{{ '{:>5}|{}'.format('b', 3) }}"
        "{{ messages[::-1] | map(attribute='role') | join(',') }}{{ messages | selectattr('role', 'equalto', 'user') "
        "| list | length }}{{ {'b': 1, 'a': [2]} | dictsort }}{{ dict(x=1).items() | list }}{{ 'a,b'.split(',')[-1] }}"
        "{{ 'x' in ['x'] and 2 ** 3 and not none }}{{ [1] + [2] }}{{ 'ab' * 2 }}{{ undefined_one }}"
    )
    messages = [{"role": "user", "content": " q "}, {"role": "assistant", "content": "a"}]
    assert ChatProgram(text).render(messages=messages, tools=[{"name": "f<"}]) == (
        '<user>q2False<assistant>a2True[\n  {\n    "name": "f<"\n  }\n]a-2    b|3assistant,user1'
        "[('a', [2]), ('b', 1)][('x', 1)]bTrue[1, 2]abab"
    )


def test_a_long_chat_is_far_from_what_a_chat_template_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilocal.prompt.bounded_jinja.WORK", WORK // 16)
    chat = [{"role": ("user", "assistant")[n % 2], "content": f"message {n} " * 30} for n in range(999)]
    for name, layout in LAYOUTS.items():
        written = chat_program(layout.template).render(messages=chat, bos_token="", eos_token="", tools=None)
        assert "message 998" in written, name


def test_every_thread_has_work_of_its_own() -> None:
    program = ChatProgram("{% for i in range(n) %}{% for j in range(1000) %}{% endfor %}{% endfor %}")
    for _ in range(3):  # three times what is left of one rendering
        program.render(n=500)
    with pytest.raises(TooMuch):
        program.render(n=2000)


def test_a_value_that_holds_itself_many_times_is_too_large() -> None:
    value: Any = "a"
    for _ in range(40):
        value = [value, value]
    with pytest.raises(TooMuch):
        weight(value)


def test_a_base_whose_chat_template_loops_is_refused_in_one_line(tmp_path: Path) -> None:
    write_layout(replace(LAYOUTS["llama 3"], template="{{ 'a' * 10**10 }}"), tmp_path)
    with pytest.raises(ModelError, match="too large"):
        _ = Base.at(tmp_path).layout
