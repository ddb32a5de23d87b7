"""Conversation records on disk, packing, the drawn pages and the small vocabulary.

Images are decoded only by the check of training data.
"""
