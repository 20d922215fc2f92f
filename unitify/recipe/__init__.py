"""``Recipe``: which values are cast, to which format; and the choice for every value."""

from unitify.recipe.choices import Choice
from unitify.recipe.reader import read_recipe
from unitify.recipe.recipe import Recipe

__all__ = ["Choice", "Recipe", "read_recipe"]
