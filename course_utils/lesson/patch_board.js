// The browser's part of PatchBoard in photo_widgets.py: a patch that is moved over a photograph.

const SEND_EVERY = 200; // milliseconds
const FAR = 8; // pixels of the photograph that an arrow key moves the patch
const KEYS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

const HTML = `
  <div class="patch-board-square">
    <img class="patch-board-photo" draggable="false">
    <div class="patch-board-patch" role="slider" tabindex="0" aria-valuemin="0"
      aria-label="Patch: drag it, or move it with the arrow keys, with Shift by one pixel">
      <img alt="" draggable="false">
    </div>
  </div>
  <div class="patch-board-caption" aria-live="polite"></div>`;

// A picture set anew flickers, also where it is the same.
function load(image, url) {
  if (image.src !== url) image.src = url;
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "patch-board";
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would go to another cell
  root.innerHTML = HTML;
  el.append(root);
  const square = root.querySelector(".patch-board-square");
  const photo = root.querySelector(".patch-board-photo");
  const patch = root.querySelector(".patch-board-patch");
  const caption = root.querySelector(".patch-board-caption");
  let place = [0, 0]; // row and column, before Python knows them
  let grip = null; // while dragged: from the patch's corner to the pointer, in pixels
  let timer = null;
  let sent = 0; // when

  function show() {
    const [height, width] = model.get("photo_size");
    const [patchHeight, patchWidth] = model.get("patch_size");
    const [row, column] = place;
    patch.style.top = `${(100 * row) / height}%`;
    patch.style.left = `${(100 * column) / width}%`;
    patch.style.height = `${(100 * patchHeight) / height}%`;
    patch.style.width = `${(100 * patchWidth) / width}%`;
    patch.ariaValueMax = width - patchWidth;
    patch.ariaValueNow = column;
    patch.ariaValueText = `row ${row}, column ${column}`;
  }

  // Shows what the model holds: at first, in a second view, or set from Python.
  function restore() {
    load(photo, model.get("photo"));
    load(patch.firstElementChild, model.get("patch"));
    photo.alt = model.get("title");
    caption.textContent = model.get("caption");
    if (grip === null && timer === null) place = [model.get("row"), model.get("column")];
    show();
  }

  function send() {
    clearTimeout(timer);
    timer = null;
    sent = Date.now();
    const [row, column] = place; // "restore" runs in between
    model.set("row", row);
    model.set("column", column);
    model.save_changes();
  }

  function move(wanted) {
    const size = model.get("photo_size");
    const patchSize = model.get("patch_size");
    place = wanted.map((at, i) => Math.max(0, Math.min(Math.round(at), size[i] - patchSize[i])));
    show();
    timer ??= setTimeout(send, Math.max(0, sent + SEND_EVERY - Date.now()));
  }

  // The pointer's row and column.
  function point(event) {
    const box = photo.getBoundingClientRect();
    const [height, width] = model.get("photo_size");
    return [
      ((event.clientY - box.top) * height) / box.height,
      ((event.clientX - box.left) * width) / box.width,
    ];
  }

  function drag(event) {
    if (grip !== null) move(point(event).map((at, i) => at - grip[i]));
  }

  function drop() {
    if (grip === null) return;
    grip = null;
    send();
  }

  square.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    patch.focus({ preventScroll: true });
    square.setPointerCapture(event.pointerId);
    const held = patch.contains(event.target); // else the patch comes to the pointer
    const centre = model.get("patch_size").map((length) => length / 2);
    grip = held ? point(event).map((at, i) => at - place[i]) : centre;
    drag(event);
  });
  square.addEventListener("pointermove", drag);
  square.addEventListener("pointerup", drop);
  square.addEventListener("pointercancel", drop);
  patch.addEventListener("keydown", (event) => {
    const direction = KEYS[event.key];
    if (!direction || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    move(direction.map((sign, i) => place[i] + sign * (event.shiftKey ? 1 : FAR)));
  });
  model.on("change", restore);
  restore();
  return () => {
    clearTimeout(timer);
    model.off("change", restore);
  };
}

export default { render };
