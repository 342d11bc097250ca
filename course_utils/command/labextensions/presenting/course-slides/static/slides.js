// The open notebook as slides. Written by hand as JupyterLab loads it: there is no build step.
//
// A step is what one key press adds: a slide, a subslide or a fragment. Cells without a slide type
// belong to the step before; notes and skipped cells are never shown. Each step is zoomed until it
// fits the window, whatever the projector.

(() => {
  const STYLE = new URL("slides.css", document.currentScript.src).href;
  const DESIGNED = [1280, 720]; // the window for which the font sizes in slides.css are meant
  const ZOOMS = [1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4];
  const KEEP_ABOVE = 0.8; // a smaller zoom is worse than to hide what was shown before
  const NEXT = ["ArrowRight", "ArrowDown", "PageDown", " "];
  const BACK = ["ArrowLeft", "ArrowUp", "PageUp"];
  const CLICKER = ["PageDown", "PageUp"]; // these turn the page wherever the focus is

  // The steps of a notebook, each as a list of groups of cell numbers: the slide's first group, what
  // its earlier fragments added, and last what this step adds.
  function steps(types) {
    const found = [];
    types.forEach((type, i) => {
      if (type === "skip" || type === "notes") return;
      const before = found.at(-1);
      if (!before || type === "slide" || type === "subslide") found.push([[i]]);
      else if (type === "fragment") found.push([...before, [i]]);
      else before.at(-1).push(i);
    });
    return found;
  }

  // What may be shown of a step, best first: without the oldest fragments, at last without the
  // slide's first group.
  function choices(groups) {
    const [first, ...others] = groups;
    const kept = others.map((_, i) => [first, ...others.slice(i)]);
    return others.length ? [...kept, [others.at(-1)]] : [[first]];
  }

  class Slides {
    constructor(app, panel) {
      this.app = app;
      this.panel = panel;
      this.notebook = panel.content;
      this.bar = document.createElement("div");
      this.bar.className = "course-slides-bar";
      this.bar.innerHTML = "<span></span><span role=status></span><span></span>"; // title, news, count
      document.body.append(this.bar);
      const resized = new ResizeObserver(() => this.later());
      resized.observe(document.body);
      for (const cell of this.notebook.widgets) resized.observe(cell.node);
      window.addEventListener("keydown", (event) => this.key(event), true);
      document.body.classList.add("course-slides");
      this.types = this.notebook.widgets.map(
        (cell) => cell.model.getMetadata("slideshow")?.slide_type ?? "",
      );
      this.steps = steps(this.types);
      this.go(0);
    }

    stop() {
      document.body.classList.remove("course-slides", "course-slides-black");
      this.notebook.node.style.removeProperty("--course-zoom");
      for (const cell of this.notebook.widgets) cell.node.classList.remove("course-shown");
    }

    go(number) {
      this.at = Math.max(0, Math.min(number, this.steps.length - 1));
      document.activeElement?.blur();
      this.notebook.mode = "command";
      this.notebook.activeCellIndex = this.steps[this.at].at(-1).at(-1);
      document.body.classList.remove("course-slides-black");
      this.fit();
    }

    // Sizes change in bursts: images load, a widget answers, code is unfolded.
    later() {
      cancelAnimationFrame(this.frame);
      this.frame = requestAnimationFrame(() => this.sizes() !== this.fitted && this.fit());
    }

    // Shows as many earlier parts of the slide as can be read, and as large as the window allows.
    fit() {
      if (!document.body.classList.contains("course-slides")) return;
      const screen = Math.min(innerWidth / DESIGNED[0], innerHeight / DESIGNED[1]);
      const options = choices(this.steps[this.at]).map((groups) => groups.flat());
      const fits = (cells, zoom) => this.show(cells, zoom * screen) <= 0;
      this.shown = options.find((cells) => fits(cells, KEEP_ABOVE)) ?? options.at(-1);
      const zoom = ZOOMS.find((zoom) => fits(this.shown, zoom)) ?? ZOOMS.at(-1);
      this.show(this.shown, zoom * screen);
      this.fitted = this.sizes();
      this.bar.firstChild.textContent = this.title();
      this.bar.lastChild.textContent = `${this.at + 1} / ${this.steps.length}`;
    }

    sizes() {
      const cells = this.shown.map((i) => this.notebook.widgets[i].node);
      return [innerWidth, innerHeight, ...cells.map((node) => node.offsetHeight)].join();
    }

    // The heading of the slide, where it is not in sight.
    title() {
      const [first] = this.steps[this.at];
      if (this.shown.includes(first[0])) return "";
      return this.notebook.widgets[first[0]].node.querySelector("h1, h2, h3")?.firstChild.textContent;
    }

    // Shows these cells only; returns how many pixels do not fit, in height or width.
    show(cells, zoom) {
      this.notebook.node.style.setProperty("--course-zoom", zoom);
      this.notebook.widgets.forEach((cell, i) => {
        cell.node.classList.toggle("course-shown", cells.includes(i));
      });
      return this.overflow();
    }

    overflow() {
      const shown = this.notebook.widgets.filter((cell) => cell.node.matches(".course-shown"));
      const bottom = Math.max(...shown.map((cell) => cell.node.getBoundingClientRect().bottom));
      const boxes = shown.flatMap((cell) => [
        ...cell.node.querySelectorAll(".jp-RenderedHTMLCommon, .jp-OutputArea-output, .cm-scroller"),
      ]);
      const wide = boxes.map((box) => box.scrollWidth - box.clientWidth - 1);
      return Math.max(bottom - (innerHeight - this.bar.offsetHeight), ...wide, 0);
    }

    key(event) {
      if (!document.body.classList.contains("course-slides")) return;
      const { key, target } = event;
      const writes = target.closest?.(".cm-editor, input, textarea, select");
      const plays = writes || target.closest?.("[role=slider], button, .digit-pad");
      if (key === "Escape") {
        if (plays) document.activeElement.blur();
        else this.stop();
      } else if (key === "Enter" && (event.shiftKey || event.ctrlKey)) {
        this.run();
      } else if ((plays && !CLICKER.includes(key)) || event.ctrlKey || event.metaKey || event.altKey) {
        return; // to the widget, the editor, the browser
      } else if (key === " " && event.shiftKey) {
        this.go(this.at - 1);
      } else if (NEXT.includes(key)) {
        this.go(this.at + 1);
      } else if (BACK.includes(key)) {
        this.go(this.at - 1);
      } else if (key === "Home" || key === "End") {
        this.go(key === "Home" ? 0 : this.steps.length);
      } else if (key === "b" || key === ".") {
        document.body.classList.toggle("course-slides-black");
      } else if (key.length > 1) {
        return; // Tab, F5, F11 …
      }
      // else a letter, which would edit the notebook
      event.preventDefault();
      event.stopImmediatePropagation();
    }

    run() {
      const editor = document.activeElement?.closest(".jp-Cell");
      const clicked = this.notebook.widgets.findIndex((cell) => cell.node === editor);
      if (clicked >= 0) this.notebook.activeCellIndex = clicked;
      this.app.commands.execute("notebook:run-cell");
    }

    // Runs every cell behind the slides, so that widgets answer. What is shown stays until a cell is
    // done: no slide is ever blank.
    async prepare() {
      const status = this.bar.children[1];
      const cells = this.notebook.widgets.filter((cell) => cell.model.type === "code");
      let failed = "";
      for (const [i, cell] of cells.entries()) {
        status.textContent = `preparing ${i + 1} of ${cells.length}`;
        const error = await this.runQuietly(cell);
        failed ||= error && `cell ${i + 1} fails: ${error}`;
      }
      status.textContent = failed;
      document.body.dataset.courseSlides = "ready";
    }

    async runQuietly(cell) {
      const { kernel } = this.panel.sessionContext.session;
      const outputs = [];
      const future = kernel.requestExecute({ code: cell.model.sharedModel.getSource() });
      future.onIOPub = ({ header, content }) => {
        const type = header.msg_type;
        const last = outputs.at(-1);
        if (type === "stream" && last?.name === content.name) last.text += content.text;
        else if (["stream", "display_data", "execute_result", "error"].includes(type)) {
          const { transient, ...output } = content;
          outputs.push({ output_type: type, ...output });
        }
      };
      const stopped = { ename: "the kernel stopped", evalue: "too little memory is the usual cause" };
      const { content } = await future.done.catch(() => ({ content: { status: "error", ...stopped } }));
      cell.model.trusted = true; // widgets are shown in trusted cells only
      cell.model.outputs.fromJSON(outputs);
      cell.model.executionCount = content.execution_count;
      return content.status === "error" ? `${content.ename}: ${content.evalue}` : "";
    }
  }

  async function until(condition) {
    for (;;) {
      const value = condition();
      if (value) return value;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  async function present(app) {
    document.head.insertAdjacentHTML("beforeend", `<link rel="stylesheet" href="${STYLE}">`);
    await app.restored;
    const panel = await until(() => {
      const widget = app.shell.currentWidget;
      return widget?.context?.isReady && widget.content.widgets?.length && widget;
    });
    await panel.revealed;
    const slides = new Slides(app, panel);
    window.courseSlides = slides; // for tests
    await panel.sessionContext.ready;
    await until(() => panel.sessionContext.session?.kernel?.status === "idle");
    await slides.prepare();
  }

  // JupyterLab starts only when all plugins are active, so this one does not wait for it.
  const activate = (app) => void present(app);
  const plugin = { id: "course-slides:plugin", autoStart: true, activate };
  window._JUPYTERLAB ??= {};
  window._JUPYTERLAB["course-slides"] = { init: () => {}, get: async () => () => plugin };
})();
