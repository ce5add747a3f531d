"""Chat templates that lay chats out as the published ones of every supported base do, and tokenizers that fit them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilocal.starter.tokenizer import CHAT_TEMPLATE
from tests.vocabularies import CHATML_TEMPLATE, llama3, qwen_like, sentencepiece_like, smollm_like

ALTERNATE = (
    "{%- for turn in turns %}{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('roles must alternate') }}{%- endif %}{%- endfor %}"
)
WITH_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
)
LLAMA2 = (
    WITH_SYSTEM + ALTERNATE + "{%- for turn in turns %}"
    "{%- if loop.first and system %}"
    "{%- set text = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + turn['content'] %}"
    "{%- else %}{%- set text = turn['content'] %}{%- endif %}"
    "{%- if turn['role'] == 'user' %}{{- bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{%- else %}{{- ' ' + text.strip() + ' ' + eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL1 = (
    "{%- set turns = messages %}" + ALTERNATE + "{{- bos_token }}{%- for turn in turns %}"
    "{%- if turn['role'] == 'user' %}{{- '[INST] ' + turn['content'] + ' [/INST]' }}"
    "{%- else %}{{- turn['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL3 = (
    WITH_SYSTEM + ALTERNATE + "{{- bos_token }}{%- for turn in turns %}"
    "{%- if turn['role'] == 'user' %}"
    "{%- if loop.last and system %}{{- '[INST] ' + system + '\\n\\n' + turn['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + turn['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + turn['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
LLAMA32 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set turns = messages[1:] %}{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}"
    "{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}"
    "{%- for turn in turns %}{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- turn['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}" + CHATML_TEMPLATE
)
QWEN3 = (
    "{%- for turn in messages %}{%- set text = turn['content'] %}"
    "{%- if turn['role'] == 'assistant' %}"
    "{%- set thoughts = '' %}{%- if '</think>' in text %}"
    "{%- set thoughts = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set text = text.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if loop.last %}{{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' + text.lstrip('\\n') }}"
    "{%- else %}{{- text }}{%- endif %}"
    "{%- else %}{{- '<|im_start|>' + turn['role'] + '\\n' + text }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a small, helpful model.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BLOCK_IN_LAST = CHAT_TEMPLATE.replace(
    "{{- message['content']",
    "{%- if loop.last and message['role'] == 'assistant' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{- message['content']",
)
"""With a block of thoughts before the last answer of a chat, which no prompt has and no switch turns off."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A layout: a chat template and who writes the tokenizer that it is made for."""

    template: str
    write: Callable[..., Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    keeps_answers: bool = True
    """Whether nothing is put around an answer."""
    system: bool = True
    """Whether the template itself takes a system message."""


INST_TOKENS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
LAYOUTS: Mapping[str, Kind] = {
    "llama 2": Kind(LLAMA2, sentencepiece_like, keeps_answers=False),
    "mistral v0.1": Kind(MISTRAL1, sentencepiece_like, {"spaces": "first"}, system=False),
    "mistral v0.3": Kind(
        MISTRAL3, sentencepiece_like, {"spaces": "first", "special": INST_TOKENS}, keeps_answers=False
    ),
    "llama 3": Kind(CHAT_TEMPLATE, llama3),
    "llama 3.2": Kind(LLAMA32, llama3),
    "qwen 2.5": Kind(QWEN25, qwen_like),
    "qwen 3": Kind(QWEN3, qwen_like),
    "qwen 3 2507": Kind(CHATML_TEMPLATE, qwen_like),
    "smollm 2": Kind(SMOLLM2, smollm_like),
    "block in the last": Kind(BLOCK_IN_LAST, llama3),
}


WITH_DEFAULT = ("llama 3.2", "qwen 2.5", "smollm 2")
"""Those that write a system message where a chat has none."""


def write_layout(kind: Kind, folder: Path, **config: Any) -> Path:
    """Write a tokenizer with its chat template; `config` changes tokenizer_config.json."""
    kind.write(folder, **kind.options)
    (folder / "chat_template.jinja").write_text(kind.template, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | config), encoding="utf-8")
    return folder
