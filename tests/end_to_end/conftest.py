"""What end-to-end tests share: figures are drawn, but not saved, which takes seconds a report."""

from collections.abc import Iterator, Sequence

import pytest

EMPTY = {"svg": b'<svg width="1" height="1"></svg>', "png": b"\x89PNG"}


@pytest.fixture(scope="module", autouse=True)
def figures_are_drawn_and_not_saved() -> Iterator[None]:
    """Run our own code on every report's facts; what matplotlib makes of it is tests/unit's, and test_recipe's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from posttrain.report import figures

    def render(draw: figures.Draw, report: figures.Facts, *, narrow: bool = False, kinds: Sequence[str]) -> list[bytes]:
        with figures.figure_style():
            figure = Figure(layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, report, narrow)
        return [EMPTY[kind] for kind in kinds]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figures, "render", render)
        yield
