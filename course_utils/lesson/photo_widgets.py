"""Things to play with on photographs: an attack on one's own picture, and a patch to move.

As in ``widgets``, a lecture gives plain functions, which can be tested without a notebook.
"""

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anywidget
import ipywidgets
import traitlets
from jaxtyping import Float
from torch import Tensor

from course_utils.core.inputs import check_images
from course_utils.core.pictures import png_of
from course_utils.lesson.widgets import Drawing, Picture, lay_out, set_visible

OWN = "my own photograph"
NAMED = 5  # classes that a message names
Photograph = Float[Tensor, "3 h w"]

ROW = {"flex_flow": "row wrap", "align_items": "center"}


# --- an attack on a photograph


class Camera(anywidget.AnyWidget):
    """A button that takes a photograph; a sentence where the browser gives no camera.

    ``photo`` holds the last photograph as the bytes of a JPEG file, at first none.
    """

    photo = traitlets.Bytes().tag(sync=True, from_json=lambda value, _widget: bytes(value))

    _esm = Path(__file__).with_name("camera.js")
    _css = Path(__file__).with_name("photo_widgets.css")


class Source(ipywidgets.Box):
    """Chooses a photograph: one of ``photos``, a file of one's own, or one from the camera.

    ``changed()`` is called after every choice. ``image()`` is (1, 3, H, W) in [0,1].
    """

    def __init__(
        self,
        photos: Mapping[str, Photograph],
        read: Callable[[bytes], Float[Tensor, "1 3 h w"]],
        changed: Callable[[], None],
    ):
        self.photos, self.read, self.changed = photos, read, changed
        self.own = b""
        self.titles = ipywidgets.Dropdown(options=[*photos, OWN], description="Photograph")
        self.upload = ipywidgets.FileUpload(
            accept="image/*",
            description="Upload your own",
            tooltip="Upload an image file of at most 9 MB",  # Jupyter refuses messages above 10 MB
            layout={"width": "auto"},
        )
        self.camera = Camera()
        lay_out("", self.titles)
        super().__init__([self.titles, self.upload, self.camera], layout=ROW)
        self.titles.observe(lambda _change: changed(), "value")
        self.upload.observe(lambda change: self.take(*change["new"]), "value")
        self.camera.observe(lambda change: self.take({"content": change["new"]}), "photo")

    def take(self, *files: Mapping) -> None:
        """Chooses the photograph in the last of ``files``, as ``FileUpload`` gives them."""
        if not files:
            return
        self.own = bytes(files[-1]["content"])
        if self.titles.value == OWN:
            self.changed()
        else:
            self.titles.value = OWN

    def image(self) -> Float[Tensor, "1 3 h w"]:
        """The chosen photograph. ValueError: there is none of one's own yet, or it is no image."""
        if self.titles.value != OWN:
            return self.photos[self.titles.value][None]
        if not self.own:
            raise ValueError("There is no photograph of your own yet; upload one or take one.")
        return self.read(self.own)


def photo_attack(
    attack: Callable[[Float[Tensor, "1 3 h w"], int], Drawing],
    photos: Mapping[str, Photograph],
    names: Sequence[str],
    *,
    target: int,
    read: Callable[[bytes], Float[Tensor, "1 3 h w"]] | None = None,
) -> ipywidgets.VBox:
    """Returns a choice of photograph and target class above the picture that ``attack`` draws.

    ``attack(x, target)`` gets one image (1, 3, H, W) in [0,1] and the number of a class. It returns
    PNG bytes, or PNG bytes and a caption in plain text. It is called at once and after every
    choice; an error, such as a file that is no image, is shown in place of the picture. The result
    has the ``Picture`` as its last child.

    Args:
        photos: title -> photograph (3, H, W) in [0,1].
        names: of all classes; the field finds a class by its name or by any part of it.
        target: number of the class at the start.
        read: makes an image (1, 3, H, W) of the bytes of an image file, and raises ValueError where
            they are none. ``photos.read`` where it is None.

    Raises:
        ValueError: no photographs, one that is none, or a target that is no class.
    """
    check_photos("photos", photos)
    labels = unlike(names)
    if target not in range(len(labels)):
        raise ValueError(f"target is {target!r}; give a class, 0 to {len(labels) - 1}.")

    def draw(wanted: str) -> Drawing:
        nonlocal target
        target = find_class(wanted, labels)
        return attack(source.image(), target)

    draw.__doc__ = attack.__doc__  # for screen readers, where there is no caption
    picture = Picture(draw)
    search = ipywidgets.Combobox(
        options=labels, description="Target class", continuous_update=False
    )

    def update(wanted: str = "") -> None:
        say_working(picture)
        picture.show(wanted or labels[target])
        search.placeholder = f"now {labels[target]}; type another, then Enter"

    def choose(change) -> None:
        if change["new"].strip():
            search.value = ""  # a field with text would offer the classes with this text only
            update(change["new"].strip())

    source = Source(photos, read or read_photo, update)
    lay_out("", search)
    search.layout.width = "46em"  # for the longest name among ImageNet's
    search.layout.max_width = "100%"
    search.observe(choose, "value")
    update()
    return ipywidgets.VBox([source, search, picture])


def say_working(picture: Picture) -> None:
    """Puts "working …" above the old picture; the next ``picture.show()`` takes it away."""
    picture.caption.value = "working …"
    set_visible(picture.error, False)
    set_visible(picture.caption, True)


def read_photo(content: bytes) -> Float[Tensor, "1 3 224 224"]:
    """Reads an image file as the photograph classifier takes it. ValueError: it is no image."""
    from course_utils.core import photos

    return photos.read(content)


def unlike(names: Sequence[str]) -> list[str]:
    """Returns the names, with the class's number after those that several classes have."""
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def find_class(text: str, names: Sequence[str]) -> int:
    """Returns the class of this name, or else the only one whose name contains ``text``.

    Capital letters do not matter. ValueError: no class, or several.
    """
    wanted = text.casefold()
    folded = [name.casefold() for name in names]
    if wanted in folded:
        return folded.index(wanted)
    found = [names[i] for i, name in enumerate(folded) if wanted in name]
    if not found:
        raise ValueError(f"No class is called {text!r}; type a part of a name, such as 'dog'.")
    if len(found) > 1:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise ValueError(
            f"{text!r} is part of {', '.join(found[:NAMED])}{more}; type one of these names."
        )
    return names.index(found[0])


# --- a patch on a photograph


class PatchBoard(anywidget.AnyWidget):
    """A photograph with a patch on it, moved by mouse, finger or keyboard.

    ``row`` and ``column`` are the patch's upper left corner in pixels of the photograph; they stay
    where the whole patch lies inside. While somebody drags, they change at most five times a
    second. Arrow keys move by 8 pixels, with Shift by one. ``caption`` is plain text beside the
    photograph, which screen readers read out when it changes.
    """

    row = traitlets.Int(0).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)
    photo = traitlets.Unicode().tag(sync=True)  # data URL of a PNG
    patch = traitlets.Unicode().tag(sync=True)  # the same
    photo_size = traitlets.Tuple((1, 1)).tag(sync=True)  # height, width in pixels
    patch_size = traitlets.Tuple((1, 1)).tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)  # of the photograph, for screen readers
    caption = traitlets.Unicode().tag(sync=True)

    _esm = Path(__file__).with_name("patch_board.js")
    _css = Path(__file__).with_name("photo_widgets.css")

    @traitlets.validate("row", "column")
    def _inside(self, proposal) -> int:
        axis = ("row", "column").index(proposal["trait"].name)
        most = self.photo_size[axis] - self.patch_size[axis]
        return max(0, min(proposal["value"], most))

    def lay(self, photo: Photograph, patch: Float[Tensor, "3 h w"], title: str = "") -> None:
        """Shows ``patch`` on ``photo``, both in [0,1], at the same place or the nearest inside.

        Raises:
            ValueError: the patch is higher or wider than the photograph.
        """
        size, patch_size = tuple(photo.shape[-2:]), tuple(patch.shape[-2:])
        if patch_size[0] > size[0] or patch_size[1] > size[1]:
            raise ValueError(
                f"patch has {patch_size[0]} × {patch_size[1]} pixels and the photograph "
                f"{size[0]} × {size[1]}; give a smaller patch."
            )
        with self.hold_sync(), self.hold_trait_notifications():
            self.photo_size, self.patch_size, self.title = size, patch_size, title
            self.photo, self.patch = data_url(photo), data_url(patch)
            self.row = min(self.row, size[0] - patch_size[0])
            self.column = min(self.column, size[1] - patch_size[1])


def patch_board(
    judge: Callable[[str, str, int, int], str],
    photos: Mapping[str, Photograph],
    patches: Mapping[str, Float[Tensor, "3 h w"]],
) -> ipywidgets.VBox:
    """Returns a choice of photograph and patch above a ``PatchBoard``, the last child.

    ``judge(photo_title, patch_title, row, column)`` returns what stands beside the photograph, in
    plain text, such as "toaster 0.98". It is called at once and after every move and choice; an
    error is shown in its place. The patch starts in the middle of the first photograph.

    Args:
        photos: title -> photograph (3, H, W) in [0,1].
        patches: title -> patch (3, h, w) in [0,1], no larger than any photograph.

    Raises:
        ValueError: nothing to choose from, or what is no photograph in [0,1].
    """
    check_photos("photos", photos)
    check_photos("patches", patches)
    board = PatchBoard()
    controls = [
        ipywidgets.Dropdown(options=[*photos], description="Photograph"),
        ipywidgets.Dropdown(options=[*patches], description="Patch"),
    ]
    judged = None

    def ask(_change=None) -> None:
        nonlocal judged
        place = (*(control.value for control in controls), board.row, board.column)
        if place != judged:  # a diagonal move changes two traits
            judged = place
            board.caption = answer(judge, *place)

    def lay(_change=None) -> None:
        photo, patch = (control.value for control in controls)
        board.lay(photos[photo], patches[patch], photo)
        ask()

    for control in controls:
        lay_out("", control)
        control.observe(lay, "value")
    photo, patch = next(iter(photos.values())), next(iter(patches.values()))
    board.lay(photo, patch)
    board.row, board.column = ((photo.shape[i] - patch.shape[i]) // 2 for i in (1, 2))
    lay()
    board.observe(ask, ["row", "column"])
    return ipywidgets.VBox([ipywidgets.Box(controls, layout=ROW), board])


def answer(judge: Callable[..., str], *place) -> str:
    """``judge(*place)``; an error as text, since Jupyter hides those of callbacks in a log."""
    try:
        return judge(*place)
    except (Exception, SystemExit) as error:  # of any type: students must see it
        return f"{type(error).__name__}: {error}"


def check_photos(name: str, photos: Mapping[str, Photograph]) -> None:
    """Refuses an empty choice, and what is no image (3, H, W) in [0,1]."""
    if not photos:
        raise ValueError(f"{name} is empty; give at least one title with its image (3, H, W).")
    for title, image in photos.items():
        if not isinstance(image, Tensor) or image.dim() != 3 or len(image) != 3:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"{name}[{title!r}] is {got}; give a colour image (3, H, W).")
        check_images(f"{name}[{title!r}]", image[None])


def data_url(image: Photograph) -> str:
    """Returns an image (3, H, W) in [0,1] as a PNG that a page can show."""
    return "data:image/png;base64," + base64.b64encode(png_of(image)).decode()
