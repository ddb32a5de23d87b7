"""Asking a model from outside: a session with streamed answers, and the demo in a browser."""
