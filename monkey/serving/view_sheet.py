"""Former names of what `monkey.serving.attention_maps` draws, for the demo until it imports from there."""

from monkey.serving.attention_maps import draw_heat as overlaid
from monkey.serving.attention_maps import draw_views as views_drawn

__all__ = ["overlaid", "views_drawn"]
