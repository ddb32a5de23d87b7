"""Conversation records on disk, packing, the drawn documents and the small vocabulary.

Images are decoded only by the check of training data.
"""
