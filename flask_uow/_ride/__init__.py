"""Statements that need no answer of their own ride in front of those that do."""
