"""Every plot of the book, in one style: colour-blind-safe, opaque, legible on a dark page.

One module a topic; a notebook calls one function a figure and gets back a matplotlib figure that
it may change. The caption and the alternative text stand in the notebook, beside the claim that
the figure makes.
"""

from deqlib.figures.style import CYCLE, INK, bound_line, new, style

__all__ = ["CYCLE", "INK", "bound_line", "new", "style"]
