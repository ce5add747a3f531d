"""Train the starter from scratch: `python -m pilocal.starter.build OUT`.

Every lesson is generated:

- repeats: random sequences with a random period; they teach the circuit that looks a word up in its context
- lookups: a bare glossary, then words each followed by its code
- relay: a glossary, then chats in which one to three words are answered by their codes
- task: whole invented tasks as chats, the template as system message; the glossaries grow as they are mastered
- recall: bare queries of one task a domain that is learned by heart

The script needs PyTorch and transformers, uses a GPU where there is one, and goes on from OUT/build.pt. Turn the
result into 4-bit weights with `python -m pilocal.starter.quantize OUT TO`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from pilocal.starter.episodes import CODES, DOMAINS, FIRST_TEST_SEED, Episode, invent
from pilocal.starter.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE, corpus, train_tokenizer

NOTHING = -1
"""No early target here."""


class Row(NamedTuple):
    """One lesson."""

    ids: list[int]
    scored: list[bool]
    """Whether the loss looks at this token."""
    early: list[int]
    """What the lower half of the layers should already know here: a word's code at the word; else NOTHING."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what the training does."""

    seed: int = 0
    steps: int = 4000
    hidden_size: int = 256
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    beta2: float = 0.98
    embedding_std: float = 0.0625
    """Unit-length embeddings stay nearly orthogonal, so that what is learned on some tokens holds for the others."""
    weight_decay: float = 0.01
    batch_tokens: int = 4096
    max_turns: int = 9


def model_config(recipe: Recipe) -> LlamaConfig:
    """Return the Llama configuration, with llama3 rope scaling."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden_size // recipe.heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.02,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
        bos_token_id=VOCAB_SIZE - len(SPECIAL_TOKENS),
        eos_token_id=VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|eot_id|>"),
        pad_token_id=VOCAB_SIZE - len(SPECIAL_TOKENS) + SPECIAL_TOKENS.index("<|finetune_right_pad_id|>"),
    )


class Lessons:
    """Generates rows; `entries` and `pool` are the curriculum's two dials."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.words = self._ids(f" {word}" for domain in DOMAINS for slot in domain.words for word in slot)
        self.codes = self._ids(f" {code}" for code in CODES)
        names = [word for domain in DOMAINS for slot in domain.words for word in slot] + list(CODES)
        self.id_of = dict(zip(names, self.words + self.codes, strict=True))
        shuffler = Random(recipe.seed)
        shuffler.shuffle(self.words)
        shuffler.shuffle(self.codes)
        self.bos, self.eot = self._ids(("<|begin_of_text|>", "<|eot_id|>"))
        self.bullet, self.newline = self._ids(("-", "\n"))
        self.headers = {
            role: self._encode(f"<|start_header_id|>{role}<|end_header_id|>\n\n")
            for role in ("system", "user", "assistant")
        }

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _ids(self, texts: Any) -> list[int]:
        return [self._encode(text)[0] for text in texts]

    def pooled(self, pool: float) -> tuple[list[int], list[int]]:
        """The words and the codes that are in use at this point of the curriculum."""
        return self.words[: math.ceil(len(self.words) * pool)], self.codes[: math.ceil(len(self.codes) * pool)]

    def repeats(self, rng: Random, length: int, tokens: Sequence[int]) -> Row:
        """A random block of 3 to 14 of `tokens`, over and over; the first round is not scored."""
        period = rng.randint(3, 14)
        block = [rng.choice(tokens) for _ in range(period)]
        ids = [self.bos] + [block[i % period] for i in range(length - 1)]
        return Row(ids, [i > period for i in range(length)], [NOTHING] * length)

    def lookups(self, rng: Random, entries: int, pool: float) -> Row:
        """A glossary as it stands in a template, then words each followed by its code; the codes are scored."""
        words, codes = self.pooled(pool)
        pairs = list(zip(rng.sample(words, entries), rng.sample(codes, entries), strict=True))
        ids = [self.bos]
        for key, code in pairs:
            ids += [self.bullet, key, code, self.newline]
        scored, early = [False] * len(ids), [NOTHING] * len(ids)
        for key, code in rng.choices(pairs, k=min(24, 2 * entries)):
            ids += [key, code]
            scored += [False, True]
            early += [code, NOTHING]
        return Row(ids, scored, early)

    def relay(self, rng: Random, entries: int, pool: float) -> Row:
        """A glossary, then a chat in which one to three words are answered by their codes, in the same order.

        The step between look-ups, where the word stands right before its code, and whole tasks.
        """
        words, codes = self.pooled(pool)
        pairs = list(zip(rng.sample(words, entries), rng.sample(codes, entries), strict=True))
        ids = [self.bos, *self.headers["system"]]
        for key, code in pairs:
            ids += [self.bullet, key, code, self.newline]
        ids.append(self.eot)
        codes_of = dict(pairs)
        scored, early = [False] * len(ids), [NOTHING] * len(ids)
        most = max(1, min(3, entries // 2 - 1))
        for _ in range(self.recipe.max_turns):
            asked = rng.sample(pairs, rng.randint(1, most))
            question = [*self.headers["user"], *(key for key, _ in asked), self.eot, *self.headers["assistant"]]
            ids += [*question, *(code for _, code in asked), self.eot]
            scored += [False] * len(question) + [True] * (len(asked) + 1)
            early += [codes_of.get(token, NOTHING) for token in question] + [NOTHING] * (len(asked) + 1)
        return Row(ids, scored, early)

    def task(self, rng: Random, episode: Episode, turns: int, *, rare: float) -> Row:
        """A chat: the template as system message, then solved queries; every answer and its end are scored."""
        prompt = [*self.headers["system"], *self._encode(episode.template), self.eot]
        return self._chat(rng, prompt, episode, turns, rare)

    def recall(self, rng: Random, episode: Episode) -> Row:
        """A bare query and its answer, as they are trained and served once a template is internalized."""
        return self._chat(rng, [], episode, 1, 0.12)

    def _chat(self, rng: Random, prompt: list[int], episode: Episode, turns: int, rare: float) -> Row:
        ids = [self.bos, *prompt]
        scored, early = [False] * len(ids), [NOTHING] * len(ids)
        codes_of = {
            self.id_of[word]: self.id_of[code]
            for words in (*episode.glossary, episode.replaced)
            for word, code in words.items()
        }
        for _ in range(turns):
            query, answer = episode.ask(rng, rare=rare)
            asked = [*self.headers["user"], *self._encode(query), self.eot, *self.headers["assistant"]]
            answered = [*self._encode(answer), self.eot]
            ids += asked + answered
            scored += [False] * len(asked) + [True] * len(answered)
            early += [codes_of.get(token, NOTHING) for token in asked] + [NOTHING] * len(answered)
        return Row(ids, scored, early)


HOMES = tuple(invent(FIRST_TEST_SEED - 1 - i, entries=54, domain=domain) for i, domain in enumerate(DOMAINS))
"""One task for each domain that the model learns by heart and answers without a template.

They give it what every real base has: knowledge in its weights, and the paths that bring it to an answer. A model that
has only ever read its prompt can hardly be taught to do without.
"""


@dataclass(slots=True)
class Curriculum:
    """Where the lessons stand; advances on the accuracy over the recent steps of each kind."""

    phase: int = 0
    """0: the look-up circuit on few tokens; 1: every word and code; 2: relays; 3: tasks."""
    entries: int = 4
    pool: float = 0.15
    """Share of the words and codes in use."""
    domains: int = 1
    """How many of the domains tasks are drawn from."""
    accuracy: float = 0.0
    """Running accuracy in the kind of lesson that decides this phase."""

    DECIDES: ClassVar = ("lookups", "lookups", "relay", "task")

    def update(self, kind: str, accuracy: float) -> None:
        """Take in one step's accuracy (for tasks: the share of whole answers) and advance where it suffices."""
        if kind != self.DECIDES[self.phase]:
            return
        self.accuracy += 0.1 * (accuracy - self.accuracy)
        if self.accuracy < (0.9, 0.9, 0.95, 0.8)[self.phase]:
            return
        self.accuracy = 0.7
        if self.phase == 0:
            self.phase = 1
        elif self.phase == 1:
            self.pool = min(1.0, self.pool * 1.6)
            self.entries = min(14, self.entries + 2)
            if self.pool == 1.0 and self.entries == 14:
                self.phase, self.entries = 2, 4
        elif self.phase == 2:
            self.entries += 2
            if self.entries > 12:
                self.phase, self.entries = 3, 6
        else:
            self.domains = min(len(DOMAINS), self.domains + (self.entries >= 12))
            self.entries = min(54, self.entries + 6)


SHARES = (
    {"repeats": 0.75, "lookups": 0.25},
    {"repeats": 0.25, "lookups": 0.75},
    {"repeats": 0.05, "lookups": 0.25, "relay": 0.70},
    {"repeats": 0.03, "lookups": 0.06, "relay": 0.10, "recall": 0.16, "task": 0.65},
)
"""How often each kind of lesson is drawn, by phase."""


def draw(lessons: Lessons, rng: Random, state: Curriculum) -> tuple[str, list[Row]]:
    """Draw one batch of rows of one kind, about `batch_tokens` long together."""
    shares = SHARES[state.phase]
    kind = rng.choices(list(shares), list(shares.values()))[0]
    rows: list[Row] = []
    total = 0
    while total < lessons.recipe.batch_tokens:
        entries = rng.randint(max(3, state.entries // 2), state.entries)
        if kind == "repeats":
            words, codes = lessons.pooled(state.pool)
            row = lessons.repeats(rng, 64, range(VOCAB_SIZE) if state.phase >= 2 else words + codes)
        elif kind == "lookups":
            row = lessons.lookups(rng, rng.randint(8, 54) if state.phase >= 2 else entries, state.pool)
        elif kind == "relay":
            row = lessons.relay(rng, entries if state.phase == 2 else rng.randint(3, 30), state.pool)
        elif kind == "recall":
            row = lessons.recall(rng, rng.choice(HOMES))
        else:
            plain = state.entries < 12
            domain = rng.choice(DOMAINS[: state.domains])
            episode = invent(rng.randrange(FIRST_TEST_SEED), entries=entries, domain=domain, rules=not plain)
            row = lessons.task(rng, episode, rng.randint(3, lessons.recipe.max_turns), rare=0.0 if plain else 0.25)
        rows.append(row)
        total += len(row.ids)
    return kind, rows


class Tensors(NamedTuple):
    """A batch of rows, padded on the right."""

    ids_BT: torch.Tensor
    scored_BT: torch.Tensor
    early_BT: torch.Tensor


def collate(rows: list[Row], pad: int, device: str) -> Tensors:
    """Pad rows to one width."""
    width = max(len(row.ids) for row in rows)

    def padded(part: int, fill: int, kind: type) -> torch.Tensor:
        return torch.tensor(
            np.array([[*row[part], *[fill] * (width - len(row.ids))] for row in rows], dtype=kind), device=device
        )

    return Tensors(padded(0, pad, np.int64), padded(1, 0, np.bool_), padded(2, NOTHING, np.int64))


def forward(
    model: LlamaForCausalLM, batch: Tensors, closed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the mean loss over the scored tokens, the early loss, and which scored tokens were predicted.

    The early loss reads what the lower half of the layers knows through the same head: that a word's code is known at
    the word, half-way up, leaves the upper half to choose among the words of a query. Without it the model keeps
    looking codes up in its last layers, too late to be passed on.

    `closed` holds the ids that are not in use yet: left in the softmax, their embeddings would all be pushed the same
    way for as long as they are never right, and could not be told apart when their turn comes.
    """
    out = model.model(input_ids=batch.ids_BT[:, :-1], use_cache=False, output_hidden_states=True)
    wanted = batch.scored_BT[:, 1:]
    logits = model.lm_head(out.last_hidden_state[wanted])
    logits[:, closed] = -1e9
    targets = batch.ids_BT[:, 1:][wanted]
    loss = torch.nn.functional.cross_entropy(logits, targets)
    known = batch.early_BT[:, :-1] != NOTHING
    half_way = out.hidden_states[len(model.model.layers) // 2][known]
    early_logits = model.lm_head(model.model.norm(half_way))
    early_logits[:, closed] = -1e9
    early = torch.nn.functional.cross_entropy(early_logits, batch.early_BT[:, :-1][known]) if known.any() else loss * 0
    return loss, early, logits.argmax(-1) == targets


def whole_answers(batch: Tensors, right: torch.Tensor, eot: int) -> float:
    """Return the share of answers of which every token is right (they end at `eot`)."""
    ends = torch.nonzero(batch.ids_BT[:, 1:][batch.scored_BT[:, 1:]] == eot).flatten().tolist()
    starts = [0] + [end + 1 for end in ends[:-1]]
    return sum(bool(right[a : b + 1].all()) for a, b in zip(starts, ends, strict=True)) / len(ends)


def rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: warm-up, a plateau, and a linear fall over the last third."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.learning_rate * warm * min(1.0, max(0.02, (recipe.steps - step) / (recipe.steps / 3)))


def train(out: Path, recipe: Recipe) -> None:
    """Train and write a Hugging Face folder to `out`; goes on from out/build.pt."""
    torch.manual_seed(recipe.seed)
    if not (out / "tokenizer.json").exists():
        train_tokenizer(corpus(), out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = cast(Any, LlamaForCausalLM(model_config(recipe))).to(device)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(recipe.embedding_std / model.config.initializer_range)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, recipe.beta2), weight_decay=recipe.weight_decay
    )
    lessons, rng, state = Lessons(tokenizer, recipe), Random(recipe.seed), Curriculum()
    step, tokens, spent = 0, 0, 0.0
    checkpoint = out / "build.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rng.setstate(saved["rng"])
        state, step, tokens, spent = Curriculum(**saved["state"]), saved["step"], saved["tokens"], saved["spent"]
    start = time.monotonic() - spent
    log = (out / "build.jsonl").open("a")

    def save() -> None:
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng.getstate()}
            | {"state": asdict(state), "step": step, "tokens": tokens, "spent": time.monotonic() - start},
            out / "build.tmp",
        )
        (out / "build.tmp").replace(checkpoint)
        model.save_pretrained(out)

    while step < recipe.steps:
        for group in optimizer.param_groups:
            group["lr"] = rate(step, recipe)
        kind, rows = draw(lessons, rng, state)
        batch = collate(rows, int(tokenizer.pad_token_id), device)
        words, codes = lessons.pooled(state.pool)
        in_use = range(VOCAB_SIZE) if state.phase >= 2 else words + codes
        closed = torch.tensor(sorted(set(range(VOCAB_SIZE)).difference(in_use)), dtype=torch.long, device=device)
        loss, early, right = forward(model, batch, closed)
        optimizer.zero_grad(set_to_none=True)
        (loss + early).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        accuracy = right.float().mean().item()
        state.update(kind, whole_answers(batch, right, lessons.eot) if kind == "task" else accuracy)
        step, tokens = step + 1, tokens + sum(len(row.ids) for row in rows)
        if step % 20 == 0:
            line = {"step": step, "tokens": tokens, "minutes": round((time.monotonic() - start) / 60, 2), "kind": kind}
            line |= {
                "loss": round(loss.item(), 4),
                "early": round(early.item(), 4),
                "right": round(accuracy, 4),
            } | asdict(state)
            log.write(json.dumps(line) + "\n")
            log.flush()
        if step % 200 == 0:
            save()
    save()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments.out, Recipe(seed=arguments.seed, steps=arguments.steps))


if __name__ == "__main__":
    main()
