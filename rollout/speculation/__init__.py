"""Speculative decoding as a managed resource: drafts from what RL already has, lengths by measured cost."""
