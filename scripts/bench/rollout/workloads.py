"""The rollout workloads W1 to W6, as token ids."""

import random
from dataclasses import dataclass
from typing import Any

from rollout.text.prompts import encode_prompt

__all__ = ["WORKLOADS", "Workload", "make_workload"]

WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "W6")
_STOCK = "river stone cloud paper wheel green quiet seven winter bread lamp north glass music field"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    prompts: list[list[int]]
    max_tokens: list[int]  # one per prompt
    group_size: int
    ignore_eos: bool


def make_workload(name: str, tokenizer: Any) -> Workload:
    """W1: 8 prompts x 8, 128 tokens each, no early stop. W2: 32 x 8. W3: 1 x 1. W4: natural lengths, at most
    256 tokens, 16 x 8. W5: a prompt of 900 tokens shared by 16 completions of 64. W6: 512 requests of mixed lengths.

    Raises:
        ValueError: no such workload.
    """
    rng = random.Random(1)
    match name:
        case "W1" | "W2" | "W3":
            num_prompts, group_size = {"W1": (8, 8), "W2": (32, 8), "W3": (1, 1)}[name]
            prompts = _sums(tokenizer, num_prompts)
            return _fixed(prompts, tokens=128, group_size=group_size)
        case "W4":
            prompts = _sums(tokenizer, 16)
            return Workload(prompts=prompts, max_tokens=[256] * 16, group_size=8, ignore_eos=False)
        case "W5":
            prompt = _chat(tokenizer, "Summarise: " + _words(rng, 1200))
            return _fixed([prompt[:870] + prompt[-30:]], tokens=64, group_size=16)
        case "W6":
            prompts = [
                _chat(tokenizer, "Continue: " + _words(rng, rng.randint(5, 500)))
                for _ in range(512)
            ]
            lengths = [rng.randint(5, 200) for _ in prompts]
            return Workload(prompts=prompts, max_tokens=lengths, group_size=1, ignore_eos=True)
        case _:
            raise ValueError(f"workloads must be among {', '.join(WORKLOADS)}, got {name!r}")


def _fixed(prompts: list[list[int]], *, tokens: int, group_size: int) -> Workload:
    return Workload(
        prompts=prompts,
        max_tokens=[tokens] * len(prompts),
        group_size=group_size,
        ignore_eos=True,
    )


def _chat(tokenizer: Any, text: str) -> list[int]:
    return encode_prompt([{"role": "user", "content": text}], tokenizer)


def _sums(tokenizer: Any, count: int) -> list[list[int]]:
    rng = random.Random(0)
    terms = [(rng.randint(10, 99), rng.randint(10, 99)) for _ in range(count)]
    return [_chat(tokenizer, f"What is {a} + {b}? Think step by step.") for a, b in terms]


def _words(rng: random.Random, count: int) -> str:
    stock = _STOCK.split()
    return " ".join(rng.choice(stock) for _ in range(count))
