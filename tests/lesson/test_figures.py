"""Figures of the lectures: each is drawn, and says what it should."""

import math
import re

import matplotlib
import pytest
import torch
from matplotlib.text import Annotation, Text

from course_utils.core import models
from course_utils.core.geometry import dual_norm
from course_utils.core.geometry import norm as size_of
from course_utils.core.images import DIGITS, Images
from course_utils.core.runtime import generator, seeded
from course_utils.lesson import figures, plots
from course_utils.methods import linear
from course_utils.methods.diagnosis import Diagnosis


@pytest.fixture(autouse=True)
def course_style():
    with matplotlib.rc_context():
        plots.style()
        yield


def words(fig) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text) if text.get_text()]


@pytest.fixture
def model():
    with seeded(0):
        return models.logistic()


def drawn(ax) -> torch.Tensor:
    return torch.tensor(ax.images[0].get_array())


def image(seed: int) -> torch.Tensor:
    return torch.rand(1, 1, 28, 28, generator=generator(seed))


def seen(model, x) -> tuple[str, torch.Tensor]:
    p = model(x).softmax(1)[0].detach()
    return f"seen as {p.argmax()}, {p.max():.0%}", p


def heights(ax) -> list[float]:
    return [bar.get_height() for bar in ax.patches]


def marked(ax) -> list[int]:
    """The bars whose names are orange."""
    names = ax.get_xticklabels()
    return [k for k, name in enumerate(names) if name.get_color() == plots.WRONG]


def assert_panels(fig, titles, images, meaning, p, k):
    """Images under these titles, and the probabilities ``p`` with the name of bar ``k`` marked."""
    *shown, bars = fig.axes
    assert [ax.get_title() for ax in fig.axes] == [*titles, f"probability\norange: {meaning}"]
    for ax, image in zip(shown, images, strict=True):
        assert torch.equal(drawn(ax), image[0, 0])
    assert heights(bars) == pytest.approx(p.tolist()) and marked(bars) == [k]


def test_digit_says_what_the_network_sees(model):
    caption, p = seen(model, image(0))
    fig = figures.digit(model, image(0), DIGITS)
    assert caption in words(fig)
    assert heights(fig.axes[1]) == pytest.approx(p.tolist())


@pytest.mark.parametrize("fooled", [False, True])
def test_attacked_shows_both_images_and_the_change(model, fooled):
    x, x_adv = image(0), image(1)
    (before, _), (after, p) = seen(model, x), seen(model, x_adv)
    y = (int(p.argmax()) + fooled) % 10
    fig = figures.attacked(model, x, x_adv, y, DIGITS, "An attack")
    change = x_adv - x
    largest = float(change.abs().max())
    titles = [f"original\n{before}", f"perturbation\nlargest {largest:.3f}", f"result\n{after}"]
    assert_panels(fig, titles, (x, change, x_adv), "true class", p, y)
    assert fig.axes[2].title.get_color() == (plots.WRONG if fooled else "black")
    assert fig.axes[1].images[0].get_clim() == pytest.approx((-largest, largest))
    assert "An attack" in words(fig)


@pytest.mark.parametrize("reached", [False, True])
def test_fake_shows_start_and_now_and_the_change(model, reached):
    start, x = image(0), image(1)
    now, p = seen(model, x)
    target = (int(p.argmax()) + (not reached)) % 10
    fig = figures.fake(model, start, x, target, DIGITS)
    change = x - start
    titles = ["start\n", f"now\n{now}", f"change\nlargest {change.abs().max():.2f}"]
    assert_panels(fig, titles, (start, x, change), "target", p, target)
    assert fig.axes[1].title.get_color() == (plots.RIGHT if reached else "black")


def test_labelled_rows_name_rows_and_columns():
    rows = {"one": torch.rand(2, 1, 8, 8), "two": torch.rand(2, 1, 8, 8)}
    fig = figures.labelled_rows(rows, ("a", "b"))
    assert [ax.get_title() for ax in fig.axes] == ["a", "b", "", ""]
    assert [ax.get_ylabel() for ax in fig.axes] == ["one", "", "two", ""]
    assert torch.equal(torch.stack([*map(drawn, fig.axes)]), torch.cat([*rows.values()])[:, 0])
    assert {ax.get_title() for ax in figures.labelled_rows(rows).axes} == {""}


def test_shares_are_written_in_per_cent_and_readable_on_dark_cells():
    fig = figures.shares({"one": [0.1, 0.9], "two": [0.59, 0.61]}, ("a", "b"))
    (ax,) = fig.axes
    assert [(text.get_text(), text.get_color(), text.get_position()) for text in ax.texts] == [
        *(("10%", "black", (0, 0)), ("90%", "white", (1, 0))),
        *(("59%", "black", (0, 1)), ("61%", "white", (1, 1))),
    ]
    labels = [label.get_text() for label in ax.get_xticklabels() + ax.get_yticklabels()]
    assert labels == ["a", "b", "one", "two"]


def test_pen_draws_a_soft_line_three_pixels_wide():
    x = figures.pen([(5, 10), (20, 10)])
    assert x.shape == (1, 1, 28, 28)
    assert x[0, 0, 7:14, 12].tolist() == [0, 0, 1, 1, 1, 0, 0]  # a pixel at distance 2 is black
    assert x[0, 0, 10, :3].max() == 0 and x[0, 0, 10, 5] == 1 and x[0, 0, 10, 22:].max() == 0
    assert figures.pen([(5, 10), (20, 11)]).unique().numel() > 2  # slanted lines have soft edges
    assert figures.pen([(5, 10), (9, 10)], side=16).shape == (1, 1, 16, 16)


def test_pen_joins_the_points_of_a_line_and_lays_lines_over_each_other():
    over, down = [(5, 5), (20, 5)], [(20, 5), (20, 20)]
    corner = figures.pen([*over, (20, 20)])
    assert torch.equal(corner, figures.pen(over, down))
    assert torch.equal(corner, figures.pen(over).maximum(figures.pen(down)))


def test_confusion_shows_every_count_and_leaves_zeros_blank():
    counts = torch.tensor([[50, 3, 0], [0, 40, 0], [7, 0, 60]])
    fig = figures.confusion(counts, ("a", "b", "c"))
    (ax,) = fig.axes
    written = {text.get_position(): (text.get_text(), text.get_color()) for text in ax.texts}
    black = {(0, 0): "50", (1, 0): "3", (1, 1): "40", (2, 2): "60"}
    assert written == {(0, 2): ("7", "white")} | {at: (n, "black") for at, n in black.items()}
    shown = ax.images[0].get_array()
    assert shown[2, 0] == 7 and shown[0, 0] == 0  # only mistakes are coloured
    assert [patch.get_xy() for patch in ax.patches] == [(k - 0.5, k - 0.5) for k in range(3)]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("seen as", "true class")


def test_confusion_without_mistakes():
    figures.confusion(torch.diag(torch.tensor([5, 5])), ("a", "b")).draw_without_rendering()


@pytest.mark.parametrize("angle", [0, 30, 45, 222])
def test_steepest_steps_shows_the_maximiser_on_the_ball_and_the_dual_norm(angle):
    fig = figures.steepest_steps(angle)
    turn = math.radians(angle)
    g = torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
    assert len(fig.axes) == 4
    for ax, line, norm in zip(fig.axes[:3], fig.axes[3].lines[::2], ("inf", 2, 1), strict=True):
        value = float(dual_norm(g[None], norm))
        r = torch.tensor([float(xs[0]) for xs in ax.lines[-1].get_data()], dtype=torch.float64)
        assert float(r @ g) == pytest.approx(value, abs=1e-6) and f"= {value:.2f}" in ax.get_title()
        supporting = torch.tensor(ax.lines[0].get_xydata())
        assert (supporting @ g).tolist() == pytest.approx([value, value], abs=1e-6)
        ball = torch.tensor(ax.patches[0].get_xy(), dtype=torch.float64)
        assert size_of(ball, norm).tolist() == pytest.approx([1] * len(ball))
        assert (ball @ g).max() <= value + 1e-6
        assert min(line.get_ydata()) >= 0.7 and max(line.get_ydata()) <= 1.4143


def test_steepest_steps_keeps_the_colour_of_a_norm():
    alone, all_three = figures.steepest_steps(30, (1,)), figures.steepest_steps(30)
    assert len(alone.axes) == 2
    assert alone.axes[0].lines[-1].get_color() == all_three.axes[2].lines[-1].get_color()


def test_loops_show_who_enters_whose_step():
    in_turn, decoupled = figures.loops().axes

    def arrows(ax):
        return {(text.xyann, text.xy) for text in ax.findobj(Annotation)}

    named = {text.get_text(): text.get_position() for text in decoupled.texts if text.get_text()}
    still = named["ξ stands still"]
    victim = [named[f"$θ_{i}$"] for i in range(4)]
    copy = [named[f"$ξ′_{i}$"] for i in range(4)]
    assert {(still, place) for place in victim[1:]} < arrows(decoupled)
    assert not any((place, to) in arrows(decoupled) for place in copy for to in victim)
    named = {text.get_text(): text.get_position() for text in in_turn.texts if text.get_text()}
    assert all((named[f"$ξ_{i}$"], named[f"$θ_{i + 1}$"]) in arrows(in_turn) for i in range(3))
    assert all((named[f"$θ_{i}$"], named[f"$ξ_{i + 1}$"]) in arrows(in_turn) for i in range(3))


def test_loss_slice_draws_the_boundary_the_ball_and_the_ends_of_the_paths():
    heights = torch.linspace(-3, 5, 9).expand(9, 9)  # 0 where the first axis is -0.5
    paths = {"short": torch.tensor([[0.0, 0.0], [1.0, 0.5]]), "long": torch.zeros(3, 2)}
    ax = figures.loss_slice(heights, 2.0, paths, 1.5, "a $title").axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["short", "long"]
    assert ax.lines[1].get_xydata().tolist() == [[1.0, 0.5]]
    assert ax.patches[0].get_radius() == 1.5
    boundary = ax.collections[1].get_paths()[0].vertices
    assert boundary[:, 0] == pytest.approx(-0.5)
    one_sided = figures.loss_slice(heights - 9, 2.0, paths, 1.5).axes[0]
    assert len(one_sided.collections) == len(ax.collections) - 1


@pytest.mark.parametrize("box", [False, True])
def test_linear_models_shows_shares_that_agree_with_the_exact_error(box):
    pixels = torch.rand(40, 1, 28, 28, generator=generator(0))
    y = (pixels[:, 0, 14, 14] > 0.5).long()
    images = Images(pixels, y, ("dark", "bright"), "noise")
    model = models.binary_logistic()
    with torch.no_grad():
        model.output.weight.zero_()[0, 14 * 28 + 14] = 2.0
        model.output.bias.fill_(-1.0)
    fig, caption = figures.linear_models({"a": model, "b": model}, images, 0, 0.2, box=box)
    assert len(fig.axes) == 6
    worst = linear.robust_error(model, images, 0.2, box=box)
    assert caption.startswith("ε = 0.20; a: 0.0% wrong before, ")
    assert caption.count(f"0.0% wrong before, {worst:.1%} at the worst") == 2
    assert f"0.0% → {worst:.1%} wrong" in fig.axes[2].get_title()
    x_adv = linear.worst_case(model, pixels[:1], y[:1], 0.2, box=box)[0, 0]
    assert torch.allclose(drawn(fig.axes[1]), (x_adv + 0.3) / 1.6)


# --- names and images of all kinds

NAMES = ["$y_{$", "$x$", "_a_b", r"\frac{", "two\nlines", "", "w" * 23]


def every_figure(model, names, x):
    """Each figure that is given names of classes, rows or models; ``x`` is one image."""
    images = Images(x.detach().float(), torch.tensor([1]), tuple(names[:2]), "noise")
    counts = torch.full((10, 10), 3)
    yield figures.digit(model, x, names)
    yield figures.attacked(model, x, 1 - x, 0, names, names[0])
    yield figures.fake(model, x, 1 - x, 0, names, names[0])
    yield figures.confusion(counts, names)
    yield figures.labelled_rows({name: x for name in names}, names)
    yield figures.shares({name: [0.1, 0.9] for name in names}, names[:2])
    yield figures.linear_models({names[0]: models.binary_logistic()}, images, 0, 0.1)[0]


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_shows_a_name_as_it_is(name, model):
    names = [f"{name}{k}" for k in range(10)]
    for fig in every_figure(model, names, image(0)):
        plots.to_png(fig)
        assert any(name in word for word in words(fig))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_every_figure_draws_images_of_any_precision_and_with_a_graph(kind, model):
    x = image(0).to(kind).requires_grad_()
    for fig in every_figure(model.to(kind), DIGITS, x):
        plots.to_png(fig)


def test_rows_may_differ_in_length():
    rows = {"one": torch.rand(3, 1, 8, 8), "two": torch.rand(1, 1, 8, 8)}
    fig = figures.labelled_rows(rows, ("a", "b"))
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1, 1, 0, 0]
    assert [ax.get_title() for ax in fig.axes[:3]] == ["a", "b", ""]


def test_what_is_empty_is_refused_by_name(model):
    nothing = torch.zeros(0, 1, 28, 28)
    images = Images(nothing, torch.zeros(0, dtype=torch.int64), ("a", "b"), "noise")
    for name, draw in (
        ("x", lambda: figures.digit(model, nothing, DIGITS)),
        ("x", lambda: figures.attacked(model, nothing, nothing, 0, DIGITS)),
        ("x", lambda: figures.fake(model, nothing, nothing, 0, DIGITS)),
        ("counts", lambda: figures.confusion(torch.zeros(0, 0), ())),
        ("rows", lambda: figures.labelled_rows({})),
        ("rows['b']", lambda: figures.labelled_rows({"a": image(0), "b": nothing})),
        ("rows", lambda: figures.shares({}, ("a",))),
        ("columns", lambda: figures.shares({"a": []}, ())),
        ("models", lambda: figures.linear_models({}, images, 0, 0.1)),
        (
            "x[index]",
            lambda: figures.linear_models({"a": models.binary_logistic()}, images, 0, 0.1),
        ),
    ):
        with pytest.raises(ValueError, match=rf"^{re.escape(name)} is empty"):
            draw()


def test_a_diagnosis_shows_the_way_and_every_judge():
    margins = torch.stack([torch.linspace(-3, 3, 11) + step for step in range(4)])
    right = {"the attack": torch.tensor([True, False]), "one step": torch.tensor([True, True])}
    way, judges = figures.diagnosis(Diagnosis((), margins, right)).axes
    assert way.lines[0].get_ydata() == pytest.approx([0, 1, 2, 3], abs=1e-6)  # the median
    assert [bar.get_width() for bar in judges.patches] == [0.5, 1.0]
    assert [label.get_text() for label in judges.get_yticklabels()] == list(right)
