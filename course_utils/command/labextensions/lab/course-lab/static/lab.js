// What JupyterLab leaves out: alternative texts, names of controls, and a word where a widget waits
// for a run. Written by hand as JupyterLab loads it: there is no build step.

(() => {
  const QUIET_MS = 250;
  const WAITS = "This control waits for a run of the lecture: menu Run → Run All Cells.";
  const GONE = "Error displaying widget: model not found"; // of a session that has ended
  const COMES = "This control comes as soon as the cells before it have run.";

  // The alternative text that the notebook stores beside a figure. JupyterLab shows alt="".
  function stored(image, panels) {
    const node = image.closest(".jp-Cell");
    const child = image.closest(".jp-OutputArea-child");
    for (const panel of panels) {
      const cell = panel.content?.widgets?.find((widget) => widget.node === node);
      if (!cell || !child) continue;
      const output = cell.model.outputs?.get([...child.parentNode.children].indexOf(child));
      return output?.metadata?.["image/png"]?.alt;
    }
  }

  // The text above a widget's picture: its caption, or what the picture shows.
  function caption(image) {
    return image.previousElementSibling?.textContent.trim() || "picture of this control";
  }

  function name(control) {
    return control.closest(".jupyter-widgets")?.querySelector(".widget-label")?.textContent;
  }

  function mend(root, panels) {
    for (const image of root.querySelectorAll(".jp-RenderedImage img:not([data-named])")) {
      const alt = stored(image, panels);
      if (alt === undefined) continue;
      image.alt = alt;
      image.dataset.named = "";
    }
    for (const image of root.querySelectorAll("img.widget-image")) {
      if (image.alt !== caption(image)) image.alt = caption(image);
    }
    for (const control of root.querySelectorAll(":is(.noUi-handle, .widget-dropdown select)")) {
      if (!control.ariaLabel) control.ariaLabel = name(control) ?? "value";
    }
    for (const editor of root.querySelectorAll(".jp-Cell .cm-content:not([aria-label])")) {
      editor.setAttribute("aria-label", "source of this cell");
    }
    for (const cell of root.querySelectorAll("[role=feed] > .jp-Cell:not([role])")) cell.role = "article";
    for (const button of root.querySelectorAll(".jp-collapseHeadingButton:not([aria-label])")) {
      button.setAttribute("aria-label", "fold this section");
    }
    for (const button of root.querySelectorAll("jp-button[aria-pressed=false]")) {
      button.removeAttribute("aria-pressed"); // not allowed on this element
    }
    for (const output of root.querySelectorAll(".jp-OutputArea-output.jupyter-widgets")) {
      if (output.textContent === GONE) output.replaceChildren(note());
    }
    for (const cell of panels.flatMap((panel) => panel.content?.widgets ?? [])) wait(cell);
  }

  function note() {
    const node = document.createElement("div");
    node.className = "course-waits";
    node.textContent = document.body.matches(".course-slides") ? COMES : WAITS;
    return node;
  }

  // A committed lecture stores no widgets, so that nothing would show where one is meant to be.
  function wait(cell) {
    const tagged = cell.model.getMetadata("tags")?.includes("widget");
    const here = cell.node.querySelector(":scope > .course-waits");
    const empty = tagged && cell.model.outputs.length === 0 && !cell.node.matches(".jp-mod-running");
    if (empty && !here) cell.node.append(note());
    else if (!empty) here?.remove();
  }

  function activate(app) {
    document.head.insertAdjacentHTML(
      "beforeend",
      "<style>.course-waits { padding: 8px; font-style: italic; }</style>",
    );
    let due = 0;
    const later = () => {
      clearTimeout(due); // a picture comes first
      due = setTimeout(() => mend(document.body, [...app.shell.widgets("main")]), QUIET_MS);
    };
    const changes = { childList: true, subtree: true, attributeFilter: ["src"] };
    new MutationObserver(later).observe(document.body, changes);
    later();
  }

  const plugin = { id: "course-lab:plugin", autoStart: true, activate };
  window._JUPYTERLAB ??= {};
  window._JUPYTERLAB["course-lab"] = { init: () => {}, get: async () => () => plugin };
})();
