// The frame: login, navigation, and the poll that keeps the view in sight up to date.

import { access, get, login, logout, refreshAccess } from "./api.js";
import { h, render } from "./dom.js";
import { remember } from "./plots.js";
import * as configuration from "./configuration.js";
import * as decisions from "./decisions.js";
import * as deployments from "./deployments.js";
import * as fleet from "./fleet.js";
import * as playground from "./playground.js";
import * as sessions from "./sessions.js";

const POLL_MS = 2000;
// Path of the address's fragment → [view, name in the navigation]. A view has load(path) → document and show(document, path, page).
const VIEWS = {
  deployments: [deployments, "Deployments"],
  sessions: [sessions, "Sessions"],
  decisions: [decisions, "Decisions"],
  configuration: [configuration, "Configuration"],
  fleet: [fleet, "Fleet"],
  playground: [playground, "Playground"],
};

const root = document.body;
const state = { config: null, problem: "", draining: false, timer: null, turn: 0, loading: true, drawn: null, began: 0 };

function where() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("?")[0].split("/");
  let path = [];
  try {
    path = rest.map(decodeURIComponent);
  } catch {
    path = []; // somebody wrote a broken address
  }
  return Object.hasOwn(VIEWS, name) ? { name, path } : { name: "deployments", path: [] };
}

// --- the frame -----------------------------------------------------------------------------------

function frame(content) {
  const { name } = where();
  const link = ([id, [, text]]) => h("li", null, h("a", { href: `#/${id}`, "aria-current": id === name ? "page" : null }, text));
  return [
    h("a", { class: "skip", href: "#main", key: "skip", onclick: skip }, "Skip to content"),
    h("header", { key: "header", class: "top" },
      h("span", { class: "brand" }, h("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, h("rect", { width: 16, height: 16, rx: 3.5, class: "brand-back" }), h("path", { d: "M2.5 8H6l4-4h3.5M6 8l4 4h3.5", class: "brand-line" })), "Realtime Router"),
      h("nav", { "aria-label": "Views" }, h("ul", null, Object.entries(VIEWS).map(link))),
      h("span", { class: "end" },
        h("span", { class: state.problem ? "live lost" : "live", role: "status" }, state.problem ? "No answer" : state.loading ? "Loading" : "Live"),
        access.login === "key" && h("button", { class: "quiet", onclick: leave }, "Log out"))),
    h("div", { key: "notice", id: "notice", role: "status", hook: { mount() {} } }),
    h("div", { key: "banners", class: "banners" }, banners()),
    h("main", { key: "main", id: "main", tabindex: "-1" }, content),
    h("footer", { key: "footer" }, `Realtime Router ${access.version}`, state.config && ` · generation ${state.config.generation}`),
  ];
}

function skip(event) {
  event.preventDefault(); // the fragment is the view's address
  document.getElementById("main").focus();
}

function banners() {
  const { config } = state;
  const shown = [];
  if (state.problem) shown.push(h("p", { key: "problem", class: "banner bad", role: "alert" }, `${state.problem} Trying again; what is shown may be old.`));
  if (state.draining) shown.push(h("p", { key: "draining", class: "banner busy" }, "The router is draining: it takes no new sessions, and ends when the running ones have."));
  if (config?.last_reload && !config.last_reload.successful) {
    const number = config.last_reload.errors.length;
    shown.push(h("p", { key: "reload", class: "banner bad" }, `The last reload was refused (${number} ${number === 1 ? "error" : "errors"}); generation ${config.generation} stays in force. `, h("a", { href: "#/configuration" }, "See what is wrong")));
  }
  if (config?.restart_needed?.length) {
    shown.push(h("p", { key: "restart", class: "banner busy" }, "Some changes of the file need a restart. ", h("a", { href: "#/configuration" }, "See which")));
  }
  return shown;
}

// --- the poll ------------------------------------------------------------------------------------

/** Load the view in sight and draw it, and again after a while. */
async function poll() {
  const { turn } = state;
  clearTimeout(state.timer);
  const { name, path } = where();
  const [view] = VIEWS[name];
  try {
    // What is not there any more is the view's to say, of one thing; of everything else it is the router's failure.
    const gone = (error) => {
      if (error.status === 404 && path.length) return null;
      throw error;
    };
    const [seen, config, known, groups] = await Promise.all([
      view.load(path).catch(gone), get("admin/config"), get("admin/fleet"), name === "deployments" ? null : get("admin/deployments"),
    ]);
    if (turn !== state.turn) return;
    Object.assign(state, { config, draining: known.draining === true, problem: "", loading: false });
    remember((groups ?? seen).groups.flatMap((one) => one.deployments));
    state.drawn = () => render(root, frame(view.show(seen, path, { again, redraw })));
    redraw();
  } catch (error) {
    if (turn !== state.turn) return;
    // A token that is not right any more is had anew; one that never is, is not asked for again and again.
    const refused = error.status === 403 && access.login === "key" && Date.now() - state.began > 5000;
    if (error.status === 401 || refused) return start(error.status === 401 ? "The login has ended." : "");
    // No status: a document that is not what it should be, or a fault of this page.
    if (error.status === undefined) console.error(error);
    Object.assign(state, { problem: error.status === undefined ? "The router's answer cannot be shown." : error.message, loading: false });
    state.drawn ??= () => render(root, frame(h("p", { class: "empty", key: "nothing" }, "Nothing to show yet.")));
    if (error.status === undefined) render(root, frame(h("p", { class: "empty", key: "nothing" }, "Nothing to show.")));
    else redraw();
  }
  schedule();
}

const redraw = () => state.drawn?.();

/** Look again at once: something was done, or is wanted to be seen otherwise. */
function again() {
  state.turn += 1;
  return poll();
}

function schedule() {
  clearTimeout(state.timer);
  if (!document.hidden && access.logged_in) state.timer = setTimeout(poll, POLL_MS);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) clearTimeout(state.timer);
  else if (access.logged_in) again();
});

addEventListener("hashchange", () => {
  if (!access.logged_in) return;
  state.drawn = null;
  state.loading = true;
  const { name } = where();
  document.title = `${VIEWS[name][1]} · Realtime Router`;
  render(root, frame(h("p", { class: "empty", key: "loading" }, "Loading…")));
  document.getElementById("main").focus({ preventScroll: true });
  scrollTo(0, 0);
  again();
});

// --- login ---------------------------------------------------------------------------------------

async function leave() {
  playground.stop();
  try {
    await logout();
  } finally {
    start();
  }
}

function loginPage(problem, busy) {
  const impossible = access.login === "impossible";
  const form = h("form", { class: "login", onsubmit: enter },
    h("h1", null, "Realtime Router"),
    impossible
      ? h("p", null, "The dashboard opens with the master key, and this router has none. Set general_settings.master_key and load the page again.")
      : [
          h("label", { for: "key" }, "Master key"),
          h("input", { id: "key", name: "key", type: "password", autocomplete: "current-password", required: true, spellcheck: "false", "aria-describedby": "problem" }),
          h("button", { class: "primary", disabled: busy }, busy ? "Checking…" : "Log in"),
        ],
    h("p", { id: "problem", class: "problem", role: "alert" }, problem));
  return h("main", { class: "alone", key: "login" }, form);
}

async function enter(event) {
  event.preventDefault();
  const field = event.target.elements.key;
  render(root, loginPage("", true));
  try {
    await login(field.value);
    field.value = "";
    begin();
  } catch (error) {
    render(root, loginPage(error.message, false));
    field.select();
  }
}

function begin() {
  const { name } = where();
  document.title = `${VIEWS[name][1]} · Realtime Router`;
  Object.assign(state, { loading: true, problem: "", began: Date.now() });
  render(root, frame(h("p", { class: "empty", key: "loading" }, "Loading…")));
  again();
}

async function start(problem = "") {
  state.turn += 1;
  clearTimeout(state.timer);
  state.drawn = null;
  state.config = null;
  try {
    await refreshAccess();
  } catch (error) {
    render(root, h("main", { class: "alone", key: "lost" }, h("h1", null, "Realtime Router"), h("p", { role: "alert" }, error.message), h("button", { onclick: () => start() }, "Try again")));
    return;
  }
  if (access.logged_in) return begin();
  document.title = "Log in · Realtime Router";
  render(root, loginPage(problem, false));
  document.getElementById("key")?.focus();
}

start();
