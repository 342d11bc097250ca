"""Pictures of the lectures: each is drawn, and says what it should."""

import matplotlib
import pytest
import torch
from matplotlib.text import Text

from course_utils import models, pictures, plots
from course_utils.data import DIGITS
from course_utils.runtime import generator, seeded


@pytest.fixture(autouse=True)
def course_style():
    with matplotlib.rc_context():
        plots.style()
        yield


def words(fig) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


def test_digit_says_what_the_network_sees():
    with seeded(0):
        model = models.logistic()
    x = torch.rand(1, 1, 28, 28, generator=generator(0))
    p = model(x).softmax(1)[0]
    fig = pictures.digit(model, x, DIGITS)
    assert f"seen as {p.argmax()}, {p.max():.0%}" in words(fig)
    assert [bar.get_height() for bar in fig.axes[1].patches] == pytest.approx(p.tolist())


def test_pen_draws_a_soft_line_three_pixels_wide():
    x = pictures.pen([(5, 10), (20, 10)])
    assert x.shape == (1, 1, 28, 28)
    assert x[0, 0, 7:14, 12].tolist() == [0, 0, 1, 1, 1, 0, 0]  # a pixel at distance 2 is black
    assert x[0, 0, 10, :3].max() == 0 and x[0, 0, 10, 5] == 1 and x[0, 0, 10, 22:].max() == 0
    assert 0 < pictures.pen([(5, 10), (20, 11)]).unique().numel() - 2  # slanted lines have soft edges


def test_pen_joins_the_points_of_a_line_and_lays_lines_over_each_other():
    corner = pictures.pen([(5, 5), (20, 5), (20, 20)])
    assert torch.equal(corner, pictures.pen([(5, 5), (20, 5)], [(20, 5), (20, 20)]))
    assert torch.equal(corner, pictures.pen([(5, 5), (20, 5)]).maximum(pictures.pen([(20, 5), (20, 20)])))


def test_confusion_shows_every_count_and_leaves_zeros_blank():
    counts = torch.tensor([[50, 3, 0], [0, 40, 0], [7, 0, 60]])
    fig = pictures.confusion(counts, ("a", "b", "c"))
    assert sorted(text.get_text() for text in fig.axes[0].texts) == sorted(["50", "3", "40", "7", "60"])
    shown = fig.axes[0].images[0].get_array()
    assert shown[2, 0] == 7 and shown[0, 0] == 0  # only mistakes are coloured


def test_confusion_without_mistakes():
    fig = pictures.confusion(torch.diag(torch.tensor([5, 5])), ("a", "b"))
    fig.draw_without_rendering()
