"""Answers in text: gold ones, where a completion's final one stands, and when they are equal."""

from rl.rewards.answers.gold import Gold, parse_gold

__all__ = ["Gold", "parse_gold"]
