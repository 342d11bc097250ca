"""The photograph of lectures 00, 03 and 04, with the extra and without it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from course_utils.core import photos
from course_utils.core.download import DataUnavailable
from course_utils.lesson import photograph, plots

with_extra = pytest.mark.skipif(bool(photos.missing()), reason=photos.missing())


def shown(fig) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(plots.drawn(fig))).convert("RGB"))


@with_extra
@pytest.mark.parametrize(
    "levels, times", [(1, 50), (2, 50), (10, 12), (127.5, 1), (200, 1), (0, 50)]
)
def test_the_change_is_enlarged_as_far_as_nothing_is_clipped(levels, times):
    fig, alt = photograph.attacked(lambda model, x, y: (x + levels / 255).clamp(0, 1))
    assert f"{times} × the change, at most {levels:.0f} of 255" in alt
    before, change, after = (ax.images[0].get_array() for ax in fig.axes)
    assert np.allclose((after - before) * times + 0.5, change, atol=1e-4) or levels == 200
    assert [ax.get_title() for ax in fig.axes][0] == "Egyptian cat\n39%"


@with_extra
def test_the_attack_gets_the_target_or_what_the_network_sees():
    asked = []

    def attack(model, x, labels):
        asked.append(labels.tolist())
        assert x.shape == (1, 3, 224, 224) and model(x).argmax(1).tolist() == [285]
        return x

    photograph.attacked(attack)
    photograph.attacked(attack, target=photos.GIBBON)
    assert asked == [[285], [photos.GIBBON]]


def test_without_the_extra_the_stored_picture_is_shown_and_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    fig, alt = photograph.attacked(lambda *_: pytest.fail("there is no network to attack"))
    told = capsys.readouterr().out
    assert "pip install" in told and "stored picture of lecture 00" in told and "Stored" in alt
    assert np.ptp(shown(fig)) > 200
    with pytest.raises(DataUnavailable, match="pip install"):
        photos.classifier()


def test_a_figure_with_photographs_is_stored_in_few_colours(monkeypatch):
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    fig = plots.images(noise, size=2)
    full, few = (plots.drawn(fig, colours=colours) for colours in (0, 256))
    assert len(few) < len(full) / 2
    digits = plots.images(noise[:, :1], size=2)  # grey: nothing to save
    assert plots.drawn(digits) == plots.drawn(digits, colours=256)
