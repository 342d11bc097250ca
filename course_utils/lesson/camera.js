// The browser's part of Camera in photo_widgets.py: sends a photograph as the bytes of a JPEG file.

const BUTTON = `type="button" class="jupyter-button widget-button"`;
const HTML = `
  <video muted playsinline hidden aria-label="What the camera sees"></video>
  <button ${BUTTON}>Use the camera</button>
  <button ${BUTTON} hidden>Cancel</button>
  <span role="status"></span>`;

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "photo-camera";
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take Enter from the buttons
  root.innerHTML = HTML;
  el.append(root);
  const [take, cancel] = root.querySelectorAll("button");
  const video = root.querySelector("video");
  const news = root.querySelector("[role=status]");
  let stream = null;

  function show() {
    const live = stream !== null;
    take.textContent = live ? "Take the photograph" : "Use the camera";
    video.hidden = !live;
    cancel.hidden = !live;
  }

  function stop() {
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = null;
    show();
  }

  async function start() {
    news.textContent = "";
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } } });
      video.srcObject = stream;
      await video.play();
      show();
    } catch (error) {
      stop();
      news.textContent = `The camera cannot be used: ${error.message}.`;
    }
  }

  async function send() {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    stop();
    const file = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
    model.set("photo", new DataView(await file.arrayBuffer()));
    model.save_changes();
  }

  // Browsers give a camera to pages of this computer and to https only.
  if (!navigator.mediaDevices?.getUserMedia) {
    take.hidden = true;
    news.textContent = "This browser gives no camera here.";
  }
  take.addEventListener("click", () => (stream ? send() : start()));
  cancel.addEventListener("click", stop);
  return stop;
}

export default { render };
