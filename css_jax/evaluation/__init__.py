"""Scores of a network: how they are measured, written and shown."""
