"""Conversation records on disk, packing, the rendered sample sets and the small vocabulary.

Pictures are decoded only by the check of training data.
"""
