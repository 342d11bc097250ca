"""Figures: nothing cut, nothing small, nothing left open."""

import base64
import io
import itertools

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import _pylab_helpers
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from course_utils.core.runtime import generator
from course_utils.lesson import plots

settings.register_profile("course", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("course")

WORDS = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture(autouse=True)
def course_style():
    with matplotlib.rc_context():
        plots.style()
        yield


@pytest.fixture
def shown(monkeypatch) -> list:
    objects = []
    monkeypatch.setattr("IPython.display.display", objects.append)
    return objects


def noise(n: int, *shape: int) -> torch.Tensor:
    return torch.rand(n, *shape, generator=generator(0))


def said(items) -> list[str]:
    return [text.get_text() for text in items]


def texts(fig) -> list[Text]:
    """The texts of a figure once it is drawn."""
    fig.draw_without_rendering()
    return [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip()]


def fits(fig) -> bool:
    """All lies within the figure, give or take a hundredth of an inch."""
    fig.draw_without_rendering()
    drawn, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    return bool(min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.01)


@pytest.fixture
def ax():
    return plots.subplots(width=5, height=3)[1]


def grid(n, titles=(), shape=(1, 28, 28), **settings):
    return lambda: plots.images(noise(n, *shape), titles, **settings)


# fmt: off
GRIDS = {
    "one": grid(1, ["seen as 7"]),
    "no titles": grid(13, columns=5),
    "ten digits": grid(10, [*"0123456789"], title="From noise to ten digits"),
    "two lines": grid(8, ["2 as 3\np = 0.9978"] * 8, columns=4, title="After 10 steps"),
    "three lines": grid(8, ["true 4\nseen as 9\n99.98 %"] * 8, columns=4),
    "long": grid(6, ["cross-entropy, λ = 30", "frog", "after 20 steps"] * 2, columns=3),
    "long headline": grid(2, title="A headline that is far longer than two small images are wide"),
    "wide letters": grid(4, ["WWWWWWWWWW"] * 4, columns=2),
    "photos": grid(8, WORDS, (3, 32, 32), columns=4, title="CIFAR-10"),
    "not square": grid(4, ["above", "above", "below", "below"], (1, 14, 28), columns=2),
    "small": grid(12, [*map(str, range(12))], columns=6, size=0.6),
}
# fmt: on


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("in_notebook", [False, True])
def test_a_grid_cuts_no_title_and_wastes_no_room(name, in_notebook, shown):
    fig = GRIDS[name]()
    if in_notebook:
        plots.show(fig, "A grid.", "embedded digits")
    assert fits(fig)
    labels = [text.get_window_extent() for text in texts(fig)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(labels, 2))
    boxes = [ax.get_window_extent() for ax in fig.axes if ax.images]
    assert not any(a.overlaps(b.padded(-1)) for a, b in itertools.product(boxes, labels))
    bottom = min(box.y0 for box in boxes) / fig.dpi
    assert bottom < (0.5 if in_notebook else 0.25)  # inches


@pytest.mark.parametrize("in_notebook", [False, True])
@pytest.mark.parametrize("classes", [[str(i) for i in range(10)], WORDS])
def test_bars_and_curves_cut_nothing(in_notebook, classes, shown):
    fig, axes = plots.subplots(1, 3, width=12, height=3.5)
    plots.probabilities(axes[0], noise(10).softmax(0), classes, mark=3, title="after the attack")
    epochs = {"xlabel": "epoch", "ylabel": "accuracy", "title": "One curve", "percent": True}
    plots.curves(axes[1], [1, 2, 3], {"train": [0.9, 0.95, 0.99]}, **epochs)
    lines = {word: noise(3, 101) for word in classes[:6]}
    steps = {"xlabel": "steps", "ylabel": "share misclassified", "title": "Six curves"}
    plots.curves(axes[2], range(101), lines, **steps)
    if in_notebook:
        plots.show(fig, "Bars and curves.", "MNIST")
    assert fits(fig)
    assert min(text.get_fontsize() for text in texts(fig)) >= 11


def test_no_font_is_small():
    keys = "font.size axes.titlesize axes.labelsize legend.fontsize xtick.labelsize ytick.labelsize"
    for key in keys.split():
        assert matplotlib.rcParams[key] >= 11


# --- show


def test_show_gives_a_png_with_alternative_text_and_the_data_set(ax, shown):
    fig = ax.figure
    height = fig.get_figheight()
    plots.show(fig, "Accuracy grows over ten epochs.", "embedded digits")
    content, metadata = shown[0]._repr_png_()
    assert len(shown) == 1
    assert metadata["alt"] == "Accuracy grows over ten epochs. Data: embedded digits."
    assert base64.b64decode(content).startswith(b"\x89PNG")
    assert "data: embedded digits" in said(texts(fig))
    assert fig.get_figheight() > height  # the caption takes no room from the figure
    assert min(text.get_fontsize() for text in texts(fig)) >= 11


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_a_figure_with_photographs_is_reduced_to_few_colours():
    smooth = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, 96)] * 2, indexing="ij"))
    photo = 0.8 * torch.cat([smooth, 1 - smooth[:1]])[None] + 0.2 * noise(1, 3, 96, 96)
    fig = plots.images(photo, size=2)
    whole, few = plots.drawn(fig), plots.drawn(fig, colours=64)
    assert opened(whole).mode == "RGBA" and opened(few).mode == "P"
    assert len(opened(few).getcolors()) <= 64 < len(opened(whole).getcolors(2**24))
    assert len(few) < 0.7 * len(whole)
    assert opened(few).size == opened(whole).size
    off = [np.asarray(opened(png).convert("RGB")).astype(float) for png in (whole, few)]
    assert abs(off[0] - off[1]).mean() < 12  # of 255


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 96, 96)])
def test_other_figures_keep_all_their_colours(shape, ax):
    fig = plots.images(noise(2, *shape))
    assert plots.drawn(fig, colours=8) == plots.drawn(fig)
    ax.plot([0, 1])
    assert plots.drawn(ax.figure, colours=8) == plots.drawn(ax.figure)


@pytest.mark.parametrize(
    ("shape", "photo"),
    [((3, 32, 32), False), ((3, 33, 33), True), ((3, 32, 60), False), ((1, 224, 224), False)],
)
def test_a_photo_has_colours_and_many_pixels(shape, photo, ax):
    plots.draw_image(ax, noise(*shape))
    assert plots.is_photo(ax.images[0]) is photo


def test_show_keeps_256_colours_of_a_photograph(shown):
    plots.show(plots.images(noise(1, 3, 64, 64)), "Noise.", "none")
    picture = opened(base64.b64decode(shown[0]._repr_png_()[0]))
    assert picture.mode == "P" and len(picture.getcolors()) <= 256


def test_nothing_stays_open_in_pyplot(shown):
    plots.show(plots.images(noise(2, 1, 8, 8)), "Noise.", "none")
    assert _pylab_helpers.Gcf.get_all_fig_managers() == []


def test_png_has_the_size_asked_for(ax):
    picture = Image.open(io.BytesIO(plots.to_png(ax.figure)))
    assert picture.size == (500, 300)


def test_subplots_shapes():
    assert not isinstance(plots.subplots()[1], np.ndarray)
    assert plots.subplots(2, 3)[1].shape == (2, 3)
    assert plots.subplots(1, 1, squeeze=False)[1].shape == (1, 1)


# --- images


@pytest.mark.parametrize(
    "channels, value, settings, limits",
    [
        (1, 0.5, {}, (0, 1)),
        (1, 3.0, {}, (0, 1)),
        (1, -0.25, {"signed": True}, (-0.25, 0.25)),
        (1, -0.25, {"signed": True, "limit": 0.5}, (-0.5, 0.5)),
        (1, 0.0, {"signed": True}, (-1, 1)),
        (3, 0.5, {"signed": True}, (-0.5, 0.5)),
    ],
)
def test_colour_limits(channels, value, settings, limits, ax):
    image = torch.full((channels, 4, 4), value, requires_grad=True)
    plots.draw_image(ax, image, "title", **settings)
    assert ax.images[0].get_clim() == limits
    assert ax.get_title() == "title" and list(ax.get_xticks()) == []


def test_up_is_red_down_is_blue_and_zero_is_white(ax):
    plots.draw_image(ax, torch.tensor([[[-1.0, 0.0, 1.0]]]), signed=True)
    blue, white, red = (np.array(ax.images[0].to_rgba(value)[:3]) for value in (-1, 0, 1))
    assert blue[2] > blue[0] + 0.2 and red[0] > red[2] + 0.2 and (white > 0.95).all()


def test_colour_images_are_drawn_in_colour_and_clipped(ax):
    plots.draw_image(ax, torch.tensor([2.0, -1.0, 0.5])[:, None, None].expand(3, 4, 5))
    drawn = ax.images[0].get_array()
    assert drawn.shape == (4, 5, 3) and drawn[0, 0].tolist() == [1, 0, 0.5]


def test_a_grid_of_perturbations_has_one_scale():
    x = torch.tensor([0.1, -0.4, 0.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    fig = plots.images(x, signed=True, columns=2)
    limits = [ax.images[0].get_clim() for ax in fig.axes if ax.images]
    assert limits == [pytest.approx((-0.4, 0.4))] * 3
    assert len(fig.axes) == 4  # the last one is empty


def test_titles_and_colours_may_be_fewer_than_images():
    fig = plots.images(noise(3, 1, 4, 4), ["a"], colours=[plots.WRONG])
    assert [ax.get_title() for ax in fig.axes] == ["a", "", ""]
    assert fig.axes[0].title.get_color() == plots.WRONG


# --- bars and curves


def test_bars_mark_the_largest_and_the_true_class(ax):
    plots.probabilities(ax, torch.tensor([0.1, 0.7, 0.2]), ["a", "b", "c"], mark=2)
    faces = [bar.get_facecolor()[:3] for bar in ax.patches]
    assert faces == [to_rgb("0.7"), to_rgb(plots.RIGHT), to_rgb("0.7")]
    assert [name.get_color() == plots.WRONG for name in ax.get_xticklabels()] == [
        False,
        False,
        True,
    ]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.1, 0.7, 0.2])
    assert said(ax.get_xticklabels()) == ["a", "b", "c"]
    assert ax.get_ylim()[1] >= 1


def test_the_marked_class_may_be_the_largest(ax):
    plots.probabilities(ax, torch.tensor([0.1, 0.9], requires_grad=True), ["a", "b"], mark=1)
    assert ax.patches[1].get_facecolor()[:3] == to_rgb(plots.RIGHT)
    assert ax.get_xticklabels()[1].get_color() == plots.WRONG


def test_curves_over_seeds_have_a_band_of_one_deviation(ax):
    runs = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 5.0]])
    lines = {"many": runs, "once": [1, 1, 1], "one seed": [[2, 2, 2]]}
    plots.curves(ax, [0, 1, 2], lines, xlabel="x", ylabel="y")
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2, 2, 4], [1, 1, 1], [2, 2, 2]]
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((2 - 2**0.5, 4 + 2**0.5))
    assert said(ax.get_legend().get_texts()) == [*lines]


def test_one_curve_needs_no_legend_and_percent_says_so(ax):
    plots.curves(ax, [0, 1], {"only": [0, 1]}, xlabel="x", ylabel="y", percent=True)
    assert ax.get_legend() is None and "100%" in said(texts(ax.figure))


def test_a_long_curve_keeps_its_line_visible(ax):
    plots.curves(ax, range(100), {"long": noise(100)}, xlabel="x", ylabel="y")
    plots.curves(ax, range(10), {"short": noise(10)}, xlabel="x", ylabel="y")
    assert [line.get_markevery() for line in ax.lines] == [6, 1]


# --- colours

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}

# Machado, Oliveira and Fernandes 2009, table 1: what people without green, red or blue cones see.
# fmt: off
BLINDNESS = {
    "deuteranopia": "0.367322 0.860646 -0.227968 0.280085 0.672501 0.047413 -0.011820 0.042940 0.968881",
    "protanopia": "0.152286 1.052583 -0.204868 0.114503 0.786281 0.099216 -0.003882 -0.048116 1.051998",
    "tritanopia": "1.255528 -0.076749 -0.178779 -0.078411 0.930809 0.147602 0.004733 0.691367 0.303900",
}
# fmt: on


def test_the_palette_is_okabe_and_itos():
    assert set(plots.COLOURS) <= OKABE_ITO
    assert len(set(plots.COLOURS)) == len(set(plots.MARKERS)) == len(plots.COLOURS)


@pytest.mark.parametrize("kind", BLINDNESS)
def test_right_and_wrong_differ_for_every_eye(kind):
    matrix = np.array(BLINDNESS[kind].split(), dtype=float).reshape(3, 3)
    seen = [matrix @ to_rgb(colour) for colour in plots.COLOURS]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 0.1
    assert np.linalg.norm(seen[0] - seen[1]) > 0.3  # RIGHT and WRONG


# --- names that come from data

NAMES = [
    *(
        "$y_{$",
        "$x$",
        "$",
        "a$b$c",
        r"\$",
        r"\frac{",
        "$\\undefined$",
        "_hidden",
        "__",
        "{}",
        "%s %",
    ),
    *("two\nlines", "", " ", "<b>&amp;</b>", "w" * 24, "漢字", "a_b^c"),
]


def drawn_names(fig) -> list[str]:
    """What is written in a figure that has been drawn."""
    plots.to_png(fig)
    return said(fig.findobj(Text))


def figures_with(names: list[str]):
    """A figure per place where a name may stand, and the texts that it must show."""
    one, two = names
    yield plots.images(noise(2, 1, 8, 8), names, title=one), [*names, one]
    fig, ax = plots.subplots()
    plots.probabilities(ax, noise(2).softmax(0), names, mark=1, title=one)
    yield fig, [*names, f"probability\n{one}" if one else "probability"]
    fig, ax = plots.subplots()
    plots.draw_image(ax, noise(1, 8, 8), two, signed=True)
    yield fig, [two]
    fig, ax = plots.subplots()
    plots.curves(ax, [1, 2], {one: [1, 2], two: [2, 3]}, xlabel="$x$", ylabel=r"$\epsilon$")
    yield fig, [*({one, two} if one != two else ()), "$x$", r"$\epsilon$"]


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout not applied")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_whatever_it_is(name):
    for fig, names in figures_with([name, "plain"]):
        assert set(names) <= set(drawn_names(fig))


@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout not applied")
@settings(max_examples=8)
@given(st.lists(st.text("$_^{}\\ab1 \n%é", max_size=9), min_size=2, max_size=2))
def test_any_name_is_shown_as_it_is(names):
    with matplotlib.rc_context():
        plots.style()
        for fig, shown in figures_with(names):
            assert set(shown) <= set(drawn_names(fig))


def test_a_name_in_dollars_looks_like_dollars_and_a_label_like_mathematics():
    def width(draw):
        fig, ax = plots.subplots(width=5, height=3)
        draw(ax)
        fig.draw_without_rendering()
        (found,) = (text for text in texts(fig) if "x" in text.get_text())
        return found.get_window_extent().width

    name = "$x_{1}+x_{2}$"
    keywords = {"xlabel": "", "ylabel": ""}
    as_it_is = width(lambda ax: ax.set_xlabel(name, parse_math=False))
    assert width(lambda ax: plots.draw_image(ax, noise(1, 8, 8), name)) > as_it_is  # a larger font
    mathematics = width(lambda ax: plots.curves(ax, [1], {"a": [1]}, **keywords | {"xlabel": name}))
    assert mathematics < 0.8 * as_it_is
    assert plots.text_width(name, "axes.labelsize") == pytest.approx(as_it_is / 100, rel=0.05)
    assert matplotlib.rcParams["text.parse_math"]  # a lecture's own figures keep their mathematics


def test_a_curve_s_name_may_begin_with_an_underscore(ax):
    plots.curves(ax, [1, 2], {"_a": [1, 2], "b": [2, 3]}, xlabel="x", ylabel="y")
    assert said(ax.get_legend().get_texts()) == ["_a", "b"]
    colours = [line.get_color() for line in ax.get_legend().get_lines()]
    assert colours == [line.get_color() for line in ax.lines]


def test_the_data_set_s_name_is_shown_as_it_is(ax, shown):
    plots.show(ax.figure, "Nothing.", "a folder called $x_{$")
    assert len(shown) == 1


# --- images of all kinds

KINDS = ["float16", "bfloat16", "float32", "float64", "uint8", "int64", "bool"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_any_type_is_drawn(kind, shape, ax):
    image = torch.ones(shape).to(getattr(torch, kind))
    for signed in (False, True):
        plots.draw_image(ax, image, signed=signed)
        assert ax.images[-1].get_array().max() == 1
    plots.to_png(plots.images(image[None], signed=True))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_values_of_any_type_and_with_a_graph_are_drawn(kind, ax):
    x = noise(2, 1, 4, 4).to(getattr(torch, kind)).requires_grad_()
    plots.draw_image(ax, 1 - x[0])
    assert np.allclose(ax.images[0].get_array(), (1 - x[0, 0]).detach().float(), atol=1e-6)
    plots.to_png(plots.images(1 - x, ["a", "b"]))
    p = x.flatten(1)[0, :3].softmax(0)
    plots.probabilities(ax, p, "abc")
    assert [bar.get_height() for bar in ax.patches] == pytest.approx(p.tolist())
    plots.curves(ax, [1, 2], {"a": x[0, 0, 0, :2]}, xlabel="", ylabel="")


def test_what_is_empty_is_refused_by_name(ax):
    nothing = torch.zeros(0, 1, 8, 8)
    for name, draw in {
        "x": lambda: plots.images(nothing),
        "image": lambda: plots.draw_image(ax, nothing[:, 0]),
        "p": lambda: plots.probabilities(ax, torch.zeros(0), []),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} is empty.*give one or more"):
            draw()


def test_a_long_class_name_leaves_room_for_the_bars():
    fig, ax = plots.subplots(width=7, height=2.9)
    plots.probabilities(ax, torch.tensor([0.2, 0.8]), ["a photograph of a cat " * 6, "dog"])
    fig.draw_without_rendering()
    assert ax.get_window_extent().height > 50  # of 290 pixels
    assert ax.get_xticklabels()[0].get_text() == "a photograph of a cat a…"


def drawing(title: str, top: float = 1.0):
    fig, axes = plots.subplots(1, 2, width=6, height=2.5)
    axes[0].plot([0, 1], [0, top])
    axes[0].set(title=title, xlabel="steps", ylim=(0, top))
    plots.draw_image(axes[1], noise(1, 8, 8), "an image")
    fig.suptitle("two of them")
    return fig


def test_a_layout_is_found_once_for_each_form(monkeypatch):
    monkeypatch.setattr(plots, "LAYOUTS", {})
    for title in ("short", "other", "a much longer title than before\nof two lines"):
        for top in (1.0, 1000.0):
            assert plots.to_png(drawing(title, top)) == plots.drawn(drawing(title, top))
    assert len(plots.LAYOUTS) == 4  # "short" and "other" have one form
    engines = []
    monkeypatch.setattr(plots, "drawn", lambda fig: engines.append(fig.get_layout_engine()))
    plots.to_png(drawing("third"))
    plots.to_png(drawing("sixth letter"))
    names = [type(engine).__name__ for engine in engines]
    assert names == ["PlaceHolderLayoutEngine", "ConstrainedLayoutEngine"]
