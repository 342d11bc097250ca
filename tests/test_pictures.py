"""Pictures of the lectures: each is drawn, and says what it should."""

import math

import matplotlib
import pytest
import torch
from matplotlib.text import Text

from course_utils import linear, models, pictures, plots
from course_utils.data import DIGITS, Images
from course_utils.geometry import dual_norm
from course_utils.geometry import norm as size_of
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


@pytest.mark.parametrize("angle", [0, 30, 45, 222])
def test_steepest_steps_shows_the_maximiser_on_the_ball_and_the_dual_norm(angle):
    fig = pictures.steepest_steps(angle)
    g = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))], dtype=torch.float64)
    assert len(fig.axes) == 4
    for ax, line, norm in zip(fig.axes[:3], fig.axes[3].lines[::2], ("inf", 2, 1), strict=True):
        value = float(dual_norm(g[None], norm))
        r = torch.tensor([float(xs[0]) for xs in ax.lines[-1].get_data()], dtype=torch.float64)
        assert float(r @ g) == pytest.approx(value, abs=1e-6) and f"= {value:.2f}" in ax.get_title()
        supporting = torch.tensor(list(zip(*ax.lines[0].get_data(), strict=True)), dtype=torch.float64)
        assert (supporting @ g).tolist() == pytest.approx([value, value], abs=1e-6)
        ball = torch.tensor(ax.patches[0].get_xy(), dtype=torch.float64)
        assert size_of(ball, norm).tolist() == pytest.approx([1] * len(ball)) and (ball @ g).max() <= value + 1e-6
        assert min(line.get_ydata()) >= 0.7 and max(line.get_ydata()) <= 1.4143


def test_steepest_steps_keeps_the_colour_of_a_norm():
    alone, all_three = pictures.steepest_steps(30, (1,)), pictures.steepest_steps(30)
    assert len(alone.axes) == 2 and alone.axes[0].lines[-1].get_color() == all_three.axes[2].lines[-1].get_color()


@pytest.mark.parametrize("box", [False, True])
def test_linear_models_shows_shares_that_agree_with_the_exact_error(box):
    pixels = torch.rand(40, 1, 28, 28, generator=generator(0))
    y = (pixels[:, 0, 14, 14] > 0.5).long()
    images = Images(pixels, y, ("dark", "bright"), "noise")
    model = models.binary_logistic()
    with torch.no_grad():
        model.output.weight.zero_()[0, 14 * 28 + 14] = 2.0
        model.output.bias.fill_(-1.0)
    fig, caption = pictures.linear_models({"a": model, "b": model}, images, 0, 0.2, box=box)
    assert len(fig.axes) == 6
    worst = linear.robust_error(model, images, 0.2, box=box)
    assert caption.count(f"0.0% wrong before, {worst:.1%} at the worst") == 2 and f"0.0% → {worst:.1%} wrong" in fig.axes[2].get_title()
    x_adv = linear.worst_case(model, pixels[:1], y[:1], 0.2, box=box)[0, 0]
    assert torch.allclose(torch.tensor(fig.axes[1].images[0].get_array()), (x_adv + 0.3) / 1.6)
