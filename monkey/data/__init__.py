"""Conversation records on disk, the rendered sample sets and the small vocabulary. No picture is decoded here."""
