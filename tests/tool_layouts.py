"""Chat templates with tools, which write calls and results as the published ones of each family do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilocal.server.tool_family import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_IDS, Family
from tests.layouts import ALTERNATE, INST_TOKENS, Kind
from tests.vocabularies import llama3, qwen_like, sentencepiece_like

QWEN_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}"
    "{{- 'These functions are there:\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}"
    '{{- "\\n</tools>\\nCall one like this:\\n<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}'
    '\\n</tool_call><|im_end|>\\n" }}'
    "{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if '</think>' in message.content %}{{- message.content.split('</think>')[-1].lstrip('\\n') }}"
    "{%- else %}{{- message.content }}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}"
    "{%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}"
    '{{- \'<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}"
    "{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA_TOOLS = (
    "{{- bos_token }}"
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}"
    "{%- if tools is not none %}{{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}"
    '{{- \'To call a function, write {"name": its name, "parameters": an object of its arguments}.\\n\\n\' }}'
    "{%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}"
    "{{- messages[0].content + '<|eot_id|>' }}{%- set messages = messages[1:] %}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if 'tool_calls' in message %}"
    "{%- if message.tool_calls | length != 1 %}{{- raise_exception('one call a message') }}{%- endif %}"
    "{%- set function = message.tool_calls[0].function %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    '{{- \'{"name": "\' + function.name + \'", "parameters": \' }}{{- function.arguments | tojson }}'
    "{{- '}<|eot_id|>' }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}{{- message.content | tojson }}{{- '<|eot_id|>' }}"
    "{%- else %}{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}"
    "{{- message.content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
NINE = (
    "{%- macro nine(id) %}{%- if id | length != 9 %}{{- raise_exception('ids have nine letters') }}{%- endif %}"
    "{{- id }}{%- endmacro %}"
)
MISTRAL_SYSTEM = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\\n\\n' %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{%- set asked = (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    "{%- set turns = messages | rejectattr('tool_calls', 'defined') | rejectattr('role', 'equalto', 'tool') | list %}"
)


def mistral_tools(calls: str, result: str) -> str:
    """Return a chat template that writes the calls of a message, and a result, in this way."""
    return (
        NINE + MISTRAL_SYSTEM + ALTERNATE + "{{- bos_token }}{%- for message in messages %}"
        "{%- if message.role == 'user' %}"
        "{%- if tools is not none and message == asked %}{{- '[AVAILABLE_TOOLS]' }}{{- tools | tojson }}"
        "{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}"
        "{{- '[INST]' + (system if message == asked else '') + message.content + '[/INST]' }}"
        "{%- elif message.tool_calls is defined %}" + calls + "{{- eos_token }}"
        "{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' }}" + result + "{{- '[/TOOL_RESULTS]' }}"
        "{%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}"
    )


LISTED = (
    "{{- '[TOOL_CALLS][' }}{%- for call in message.tool_calls %}{{- (call.function | tojson)[:-1] }}"
    "{{- ', \"id\": \"' + nine(call.id) + '\"}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' }}"
)
LISTED_RESULT = "{{- {'content': message.content, 'call_id': nine(message.tool_call_id)} | tojson }}"
WITH_ARGS = (
    "{%- for call in message.tool_calls %}"
    "{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}{{- call.function.arguments | tojson }}{%- endfor %}"
)
WITH_IDS = WITH_ARGS.replace("+ '[ARGS]'", "+ '[CALL_ID]' + nine(call.id) + '[ARGS]'")
ID_RESULT = "{{- nine(message.tool_call_id) + '[TOOL_CONTENT]' + message.content }}"

MISTRAL_MARKS = (
    *INST_TOKENS,
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CONTENT]"),
)
MISTRAL_OPTIONS: Mapping[str, Any] = {"spaces": "first", "special": MISTRAL_MARKS}


@dataclass(frozen=True, slots=True)
class ToolLayout:
    """A chat template with tools, the family it is of, and who writes a tokenizer for it."""

    family: Family
    template: str
    write: Callable[..., Path]
    options: Mapping[str, Any]
    answer: tuple[str, str]
    """What stands around an answer."""

    @property
    def kind(self) -> Kind:
        """The layout of the tokenizer."""
        return Kind(self.template, self.write, self.options)


def _mistral(family: Family, calls: str, result: str) -> ToolLayout:
    template = mistral_tools(calls, result)
    return ToolLayout(family, template, sentencepiece_like, MISTRAL_OPTIONS, ("[/INST]", "</s>"))


TOOL_LAYOUTS: Mapping[str, ToolLayout] = {
    "qwen": ToolLayout(HERMES, QWEN_TOOLS, qwen_like, {}, ("<|im_start|>assistant\n", "<|im_end|>")),
    "llama": ToolLayout(
        LLAMA, LLAMA_TOOLS, llama3, {}, ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>")
    ),
    "mistral": _mistral(MISTRAL, LISTED, LISTED_RESULT),
    "mistral args": _mistral(MISTRAL_ARGS, WITH_ARGS, "{{- message.content }}"),
    "mistral ids": _mistral(MISTRAL_IDS, WITH_IDS, ID_RESULT),
}


def rendered(template: str, messages: Any, **more: Any) -> str:
    """Return the text that a chat template makes of a chat."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(template=template, eos_token="</s>", bos_token="<s>")
    return str(formatter(messages=messages, **more).prompt)
