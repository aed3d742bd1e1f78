// Questions before something is done, and what came of it.

import { h, render } from "./dom.js";

/**
 * Ask before doing; do it; show why it failed.
 * `fields`: elements inside the form. `act(data)` gets its FormData and may be asynchronous.
 * Resolves to true when it was done.
 */
export function confirm({ title, text, button, danger = false, fields = [], act }) {
  const opener = document.activeElement;
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-labelledby", "dialog-title");
  document.body.append(dialog);
  let busy = false;
  return new Promise((resolve) => {
    const close = (done) => {
      dialog.close();
      dialog.remove();
      // The element may have been drawn anew meanwhile.
      if (opener?.isConnected) opener.focus();
      resolve(done);
    };
    const submit = async (event) => {
      event.preventDefault();
      if (busy) return;
      const data = new FormData(event.target);
      busy = true;
      draw("");
      try {
        await act(data);
        close(true);
      } catch (error) {
        busy = false;
        draw(error.message);
      }
    };
    const draw = (problem) => render(dialog,
      h("form", { method: "dialog", onsubmit: submit },
        h("h2", { id: "dialog-title" }, title),
        h("p", null, text),
        fields,
        h("p", { class: "problem", role: "alert" }, problem),
        h("div", { class: "buttons" },
          h("button", { type: "button", onclick: () => close(false) }, "Cancel"),
          h("button", { class: danger ? "danger" : "primary", disabled: busy }, busy ? "Working…" : button))));
    dialog.oncancel = (event) => {
      event.preventDefault();
      close(false);
    };
    draw("");
    dialog.showModal();
  });
}

/** Say something in passing, to screen readers as well. */
export function notify(text) {
  const place = document.getElementById("notice");
  place.textContent = text;
  clearTimeout(notify.timer);
  notify.timer = setTimeout(() => { place.textContent = ""; }, 6000);
}
