// The browser's part of DigitPad in widgets.py: draws on a canvas and sends 28 × 28 grey values.

const CELLS = 28; // the image has CELLS × CELLS pixels
const CELL = 10; // canvas pixels a cell
const SIDE = CELLS * CELL;
const BRUSH = 17; // radius in canvas pixels
const SEND_EVERY = 100; // milliseconds

const HTML = `
  <div class="digit-pad-square">
    <canvas width="${SIDE}" height="${SIDE}" role="img"
      aria-label="Drawing pad: draw a digit with mouse, pen or finger"></canvas>
    <div class="digit-pad-guide"></div>
  </div>
  <button type="button" class="jupyter-button widget-button"
    aria-label="Clear the drawing pad">Clear</button>`;

function brush() {
  const stamp = document.createElement("canvas");
  stamp.width = 2 * BRUSH;
  stamp.height = 2 * BRUSH;
  const context = stamp.getContext("2d");
  const shade = context.createRadialGradient(BRUSH, BRUSH, 0.45 * BRUSH, BRUSH, BRUSH, BRUSH);
  shade.addColorStop(0, "white");
  shade.addColorStop(1, "black");
  context.fillStyle = shade;
  context.fillRect(0, 0, 2 * BRUSH, 2 * BRUSH);
  return stamp;
}

function clear(context) {
  context.globalCompositeOperation = "source-over";
  context.fillStyle = "black";
  context.fillRect(0, 0, SIDE, SIDE);
}

function paint(context, pixels) {
  clear(context);
  pixels.forEach((value, i) => {
    context.fillStyle = `rgb(${value}, ${value}, ${value})`;
    context.fillRect((i % CELLS) * CELL, Math.floor(i / CELLS) * CELL, CELL, CELL);
  });
}

// The mean of each cell, row by row.
function read(context) {
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  const sums = Array.from({ length: CELLS * CELLS }).fill(0);
  for (let y = 0; y < SIDE; y++) {
    for (let x = 0; x < SIDE; x++) {
      sums[Math.floor(y / CELL) * CELLS + Math.floor(x / CELL)] += data[4 * (y * SIDE + x)];
    }
  }
  return sums.map((sum) => Math.round(sum / (CELL * CELL)));
}

// Stamps from one point to the other. "lighten", as added strokes would lose their soft edges.
function draw(context, stamp, [x0, y0], [x, y]) {
  const stamps = Math.max(1, Math.ceil(Math.hypot(x - x0, y - y0) / 2));
  context.globalCompositeOperation = "lighten";
  for (let i = 1; i <= stamps; i++) {
    const right = x0 + ((x - x0) * i) / stamps;
    const down = y0 + ((y - y0) * i) / stamps;
    context.drawImage(stamp, right - BRUSH, down - BRUSH);
  }
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "digit-pad";
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take Enter from the button
  root.innerHTML = HTML;
  el.append(root);
  const canvas = root.querySelector("canvas");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const stamp = brush();
  let last = null;
  let timer = null;
  let sent = null;

  // Shows what the model holds: after a reload, in a second view, or set from Python.
  function restore() {
    const pixels = model.get("pixels");
    if (pixels !== sent) paint(context, pixels);
  }

  function send() {
    clearTimeout(timer);
    timer = null;
    sent = read(context);
    model.set("pixels", sent);
    model.save_changes();
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) * SIDE) / box.width;
    const y = ((event.clientY - box.top) * SIDE) / box.height;
    return [x, y];
  }

  function stroke(event) {
    const next = point(event);
    draw(context, stamp, last ?? next, next);
    last = next;
    timer ??= setTimeout(send, SEND_EVERY);
  }

  function lift() {
    if (last) send();
    last = null;
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    last = null;
    stroke(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (last) (event.getCoalescedEvents?.() ?? [event]).forEach(stroke);
  });
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  root.querySelector("button").addEventListener("click", () => {
    clear(context);
    send();
  });
  model.on("change:pixels", restore);
  restore();
  return () => {
    clearTimeout(timer);
    model.off("change:pixels", restore);
  };
}

export default { render };
