"""Conversation records on disk, the rendered sample sets and the small vocabulary. Pictures are decoded only by the check of training data."""
