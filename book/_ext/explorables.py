"""Explorables: figures to turn, on a site without a kernel and without a network.

``:::{explorable} NAME`` puts one on a page; so does, in a notebook, a code cell with the tag
``explorable-NAME``, right after it: in JupyterLab the cell shows its widget, on the site the
explorable stands in its place. Either way the page gets

* a mount point, which book/_static/explorables.js fills when the reader comes near, with the
  mathematics of book/_static/equilibria.js and the drawing of plotly.js;
* inside it a still picture by deqlib's own figures, drawn by this build, for readers without
  scripts and for paper.

The scripts are loaded only by pages that need them. plotly.js is copied out of the installed
package `plotly` into `_static/plotly`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.fileutil import copy_asset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

SCRIPTS = ("equilibria.js", "explorables.js")
STYLE = "explorables.css"
TAG = "tag_explorable-"


class Still(NamedTuple):
    """The picture that stands where scripts are off: how to draw it, and what it shows."""

    draw: Callable[[], Figure]
    alt: str
    caption: str


# ------------------------------------------------------------------------------- still pictures


def _cobweb() -> Figure:
    from deqlib.figures import solving

    return solving.cobwebs([(0.9, 1.0), (-2.0, 1.0), (2.0, 1.0)], s=0.1)


def _sphere() -> Figure:
    import torch

    from deqlib import linear
    from deqlib.dynamics import gradient_descent
    from deqlib.figures import spheres
    from deqlib.linear import LinearDEQ

    steps, radii = [0.02, 0.2, 1.0], [0.5, 1.5]
    one = torch.ones(1, 1, dtype=torch.float64)
    turn = torch.deg2rad(torch.tensor(150.0, dtype=torch.float64))
    eta, radius = (
        x.double() for x in torch.broadcast_tensors(torch.tensor([steps]), torch.tensor([radii]).T)
    )
    run = gradient_descent(
        lambda at: linear.loss(at, one, one),
        LinearDEQ(
            (1 - radius * torch.sin(turn))[..., None, None],
            (radius * torch.cos(turn))[..., None, None],
        ),
        eta,
        60,
        grad=lambda at: linear.gradient(at, one, one),
        batch_ndim=2,
        progress=False,
    )
    path = 1 - run.theta.W[..., 0, 0], run.theta.U[..., 0, 0]
    return spheres.descent_circles(*path, 1.0, steps, radii)


def _landscape() -> Figure:
    from deqlib.figures import landscape

    return landscape.start_and_target()


def _link() -> Figure:
    from deqlib.activations import tanh
    from deqlib.figures import branches

    return branches.curves(tanh, (0.5, 1.0, 1.5))


def _rate() -> Figure:
    import torch

    from deqlib import linear, rates
    from deqlib.dynamics import gradient_flow
    from deqlib.figures import rates as figures
    from deqlib.linear import LinearDEQ

    zero = LinearDEQ(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))

    def panel(kappa: float, size: float) -> tuple[str, Any, Any, Any, Any]:
        S = torch.diag(torch.tensor([1.0, 1 / kappa], dtype=torch.float64))
        A = size * torch.tensor([[1.0, 0.5]], dtype=torch.float64)
        sharp = rates.hessian_spectrum(linear.sphere_limit(zero, A), S, A)[0]
        run = gradient_flow(
            lambda at: linear.loss(at, S, A),
            zero,
            float(7 / sharp),
            grad=lambda at: linear.gradient(at, S, A),
            progress=False,
        )
        loss = run.loss / run.loss[0]
        bound = torch.exp(-2 * rates.pl_constant(zero, S) * run.t)
        line = loss[-1] * torch.exp(-2 * sharp * (run.t - run.t[-1]))
        return f"$\\kappa(S)={kappa:g}$", run.t, loss, bound, line

    return figures.grid(
        {f"$|A|={size * 1.25**0.5:.2g}$": [panel(k, size) for k in (1, 4, 16)] for size in (0.3, 1)}
    )


STILLS = {
    "cobweb": Still(
        _cobweb,
        "Three cobwebs of z = tanh(a z + 0.1). At a = 0.9 the staircase climbs to the crossing of "
        "curve and diagonal; at a = −2 it ends on a rectangle; at a = 2 the curve crosses the "
        "diagonal three times and the staircase ends at the lowest crossing.",
        "Picard’s iteration converges, oscillates, or chooses between equilibria.",
    ),
    "sphere": Still(
        _sphere,
        "Six panels, two starting radii by three step sizes. With small steps the dots follow a "
        "grey circle to a dashed line; with larger steps and the smaller radius they jump outward "
        "and end on the line outside the circle.",
        "Sixty steps of descent. Flow would stay on the grey circle; long steps leave it.",
    ),
    "landscape": Still(
        _landscape,
        "Three maps of the a-u plane with an orange line through (1, 0) of different slope in "
        "each. Four black arcs lead from dots to stars on the orange line and never cross the "
        "dashed line a = 1.",
        "Gradient flow in the landscape of the scalar linear model, for three targets.",
    ),
    "link": Still(
        _link,
        "Three plots of z against s for tanh. At a = 0.5 the curve is an S; at a = 1 it is "
        "vertical in the middle; at a = 1.5 it folds back between two marked points and its "
        "middle part is dotted.",
        "The link learned from tanh, and its fold beyond a = 1.",
    ),
    "rate": Still(
        _rate,
        "Six semilogarithmic plots, three condition numbers by two sizes of the target. For the "
        "small target the measured curve, the dotted slope and the dashed bound lie close "
        "together; for the large one the measured curve falls faster than the bound.",
        "Loss of the flow, the proved bound, and the sharp slope.",
    ),
}


# ------------------------------------------------------------------------------- on the page


class explorable(nodes.General, nodes.Element):  # noqa: N801  (docutils names nodes like this)
    """The place of one explorable; its attribute ``name`` says which."""


def make(name: str, location: Any) -> list[nodes.Node]:
    if name not in STILLS:
        logger.warning(
            "explorable is %r; it must be one of %s", name, ", ".join(STILLS), location=location
        )
        return []
    return [explorable(name=name, ids=[f"explorable-{name}"])]


class Explorable(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return make(self.arguments[0], self.get_location())


def after_tagged_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Put an explorable right after each code cell that has its tag."""
    for cell in list(doctree.findall(nodes.container)):
        for name in [c[len(TAG) :] for c in cell["classes"] if c.startswith(TAG)]:
            for made in reversed(make(name, cell)):
                cell.parent.insert(cell.parent.index(cell) + 1, made)


def visit_html(self: Any, node: explorable) -> None:
    name = node["name"]
    still = STILLS[name]
    top = "../" * self.builder.get_target_uri(self.builder.current_docname).count("/")
    picture = f"{top}_static/explorables/{name}.png"
    self.body.append(
        f'<div class="explorable" id="explorable-{name}" data-explorable="{name}">'
        '<figure class="explorable-still">'
        f'<img src="{picture}" alt="{self.attval(still.alt)}" loading="lazy"/>'
        f"<figcaption>{self.encode(still.caption)}</figcaption></figure></div>\n"
    )
    raise nodes.SkipNode


def visit_other(self: Any, node: explorable) -> None:
    """Outside HTML: nothing to turn. The words around it stand alone."""
    raise nodes.SkipNode


def scripts(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if doctree is not None and next(doctree.findall(explorable), None) is not None:
        for script in SCRIPTS:
            app.add_js_file(script, loading_method="defer")
        app.add_css_file(STYLE)


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    import matplotlib.pyplot as plt

    package = find_spec("plotly")
    if package is None or package.origin is None:
        raise RuntimeError("plotly is not installed; requirements.txt names it")
    static = Path(app.outdir) / "_static"
    source = Path(package.origin).parent / "package_data" / "plotly.min.js"
    copy_asset(str(source), str(static / "plotly"))
    (static / "explorables").mkdir(exist_ok=True)
    for name, still in STILLS.items():
        figure = still.draw()
        # no version and no date in the file: the same sources give the same picture
        figure.savefig(static / "explorables" / f"{name}.png", metadata={"Software": None})
        plt.close(figure)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_node(
        explorable,
        html=(visit_html, None),
        latex=(visit_other, None),
        text=(visit_other, None),
        man=(visit_other, None),
        texinfo=(visit_other, None),
    )
    app.add_directive("explorable", Explorable)
    app.connect("doctree-read", after_tagged_cells)
    app.connect("html-page-context", scripts)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
