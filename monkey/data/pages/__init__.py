"""Pages by real typesetting, with what stands on them, and questions as people ask about them."""
