from __future__ import annotations

import pytest
import yaml

from pilocal.export.card import Facts, Kind, card

KIND = Kind(library="peft", tags=["lora"], what="A PEFT adapter", how="```sh\nload it\n```")
METRICS = {
    "metric": "exact_match",
    "n": 240,
    "arms": {
        "base_full_prompt": {"score": 1.0, "interval": [0.98, 1.0], "prompt_tokens": 423.4, "ttft_ms": 15.8},
        "internalized": {"score": 0.9934, "interval": [0.982, 1.0], "prompt_tokens": 17.81},
    },
}


@pytest.mark.parametrize("base", ["owner/model", "/models/llama", "starter"])
def test_the_front_matter_is_yaml_whatever_the_names(base: str) -> None:
    text = card(Facts(task='a "task": [x]\n---', base=base), KIND)
    head = yaml.safe_load(text.split("---\n")[1])
    assert head.pop("base_model", None) == (base if base == "owner/model" else None)
    assert head == {"library_name": "peft", "tags": ["pilocal", "lora"]}


def test_scores_stand_beside_each_other_when_there_are_any() -> None:
    text = card(Facts(task="smart-home", base="starter", metrics=METRICS), KIND)
    assert "240 test queries" in text
    assert "| arm | exact match | 95% interval | prompt tokens |" in text
    assert "| base full prompt | 1.000 | 0.980 to 1.000 | 423.4 |" in text
    assert "| internalized | 0.993 | 0.982 to 1.000 | 17.8 |" in text
    assert "unrelated" not in text and "nothing to do" not in text
    kept = METRICS | {"retention": {"prompts": 40, "kl": 0.01234}}
    text = card(Facts(task="smart-home", base="starter", metrics=kept), KIND)
    assert "On 40 prompts that have nothing to do with the task,\nit lies 0.012 nats per token from the base" in text
    assert "## Measured" not in card(Facts(task="smart-home", base="starter"), KIND)


def test_what_was_given_is_shown_and_nothing_else() -> None:
    gate = (["file", "KL"], [["base.gguf + adapter.gguf", "0.001"]])
    text = card(
        Facts(task="smart-home", base="starter", gate=gate, notes=["So it is."], versions={"mlx": "0.32"}), KIND
    )
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == ["## How to call it", "## Beside the model that was trained", "## Made with"]
    assert "| base.gguf + adapter.gguf | 0.001 |\n\nSo it is.\n" in text
    assert "mlx 0.32." in text
