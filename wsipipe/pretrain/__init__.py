"""Train an encoder on slides: recipes, methods, one loop, and the way back into extraction.

from wsipipe.pretrain import pretrain
pretrain("dinov2", scale="smoke", slides=["slides/"], out="run")     # -> run/encoder/
"""

from __future__ import annotations

from wsipipe.pretrain.recipe import Recipe, list_recipes, load_recipe
from wsipipe.pretrain.run import Pretrained, pretrain

__all__ = ["Pretrained", "Recipe", "list_recipes", "load_recipe", "pretrain"]
