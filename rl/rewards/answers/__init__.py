"""Answers in text: parsing of gold answers, search for a completion's final answer, and their comparison."""

from rl.rewards.answers.gold import Gold, parse_gold

__all__ = ["Gold", "parse_gold"]
