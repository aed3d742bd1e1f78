// Talk to a group as a client would: through the router, by microphone or text.

import { get, post, sessionUrl } from "./api.js";
import { badge, count, duration, h, latency } from "./dom.js";
import { Microphone, noMicrophone, Player } from "./voice.js";

const MOST_EVENTS = 400;
const MOST_TURNS = 12;
const MOST_LINES = 60;
const MOST_LINE_CHARS = 4000;
const MOST_UNSENT_BYTES = 1_000_000; // two connections' worth of patience; what is spoken beyond it is lost
const AUDIO = new Set(["response.output_audio.delta", "response.audio.delta", "input_audio_buffer.append"]);
const SPOKEN = new Set(["response.output_audio_transcript.delta", "response.audio_transcript.delta", "response.output_text.delta", "response.text.delta"]);
const GREETINGS = new Set(["session.created", "conversation.created", "transcription_session.created"]);

const filter = { text: "", audio: false };
let group = "";
let draft = "";
let talk = null; // the session that runs, or ran last
let draw = () => {};
let drawing;

/** Draw soon; events come faster than anybody reads. */
function changed() {
  drawing ??= setTimeout(() => {
    drawing = undefined;
    draw();
    if (talk?.player?.playing) changed();
  }, 120);
}

class Talk {
  constructor(name) {
    this.group = name;
    this.phase = "connecting";
    this.problem = "";
    this.events = [];
    this.number = 0;
    this.lines = [];
    this.turns = [];
    this.turn = null; // {asked, audio, …} of the answer that is awaited or runs
    this.ready = null;
    this.microphone = null;
    this.opening = false;
    this.unsent = 0;
    this.left = false;
    this.player = new Player();
  }

  async connect() {
    try {
      const { ticket } = await post("dashboard/tickets");
      if (this.left) return;
      this.began = performance.now();
      this.socket = new WebSocket(sessionUrl(this.group), ["realtime", `router-ticket.${ticket}`]);
    } catch (error) {
      this.end(error.message);
      return;
    }
    this.socket.onmessage = ({ data }) => this.heard(data);
    this.socket.onclose = ({ code, reason }) => this.end(this.left ? "" : `Closed with code ${code}${reason ? `: ${reason}` : ""}.`);
  }

  end(problem) {
    if (this.phase === "over") return;
    this.phase = "over";
    this.problem = problem || this.problem;
    this.mute();
    // What was said is heard to its end, unless the operator has left.
    if (this.left) this.player.close();
    changed();
  }

  leave() {
    this.left = true;
    this.socket?.close(1000, "done");
    this.player.stop();
    this.end("");
  }

  // --- what the router sends ---

  heard(data) {
    const now = performance.now();
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      event = null;
    }
    if (event === null || typeof event !== "object" || Array.isArray(event)) {
      this.note("in", { type: "(no event)" }, 0);
      return;
    }
    const type = String(event.type);
    this.note("in", event, typeof data === "string" ? data.length : 0);
    if (this.ready === null && type !== "error") {
      this.ready = (now - this.began) / 1000;
      this.phase = "open";
    }
    if (GREETINGS.has(type)) this.session = event.session;
    else if (type === "error") this.problem = String(event.error?.message ?? "The provider sent an error.");
    else if (type === "input_audio_buffer.speech_started") this.interrupted();
    else if (type === "input_audio_buffer.speech_stopped") this.asked(now);
    else if (type === "response.created") this.answering(now);
    else if (AUDIO.has(type)) this.sound(event, now);
    else if (SPOKEN.has(type)) this.append("them", String(event.delta ?? ""), event.item_id);
    else if (type === "conversation.item.input_audio_transcription.completed") this.append("you", String(event.transcript ?? ""), null);
    else if (type === "response.done") this.answered(event, now);
    changed();
  }

  asked(now) {
    this.turn = { asked: now, audio: null, sound: 0 };
  }

  answering(now) {
    this.turn ??= { asked: now, audio: null, sound: 0 };
  }

  sound(event, now) {
    const delta = String(event.delta ?? "");
    if (this.turn && this.turn.audio === null) this.turn.audio = now;
    if (this.turn) this.turn.sound += (delta.length * 0.75) / 48_000;
    if (this.stopped !== undefined && this.stopped === event.item_id) return; // spoken over already
    this.player.play(delta, event.item_id, event.content_index ?? 0);
  }

  answered(event, now) {
    const { turn } = this;
    if (!turn) return;
    this.turn = null;
    const seconds = (at) => (at === null ? null : (at - turn.asked) / 1000);
    this.number += 1;
    this.turns.unshift({ number: this.number, audio: seconds(turn.audio), whole: seconds(now), sound: turn.sound, status: String(event.response?.status ?? "–") });
    this.turns.length = Math.min(this.turns.length, MOST_TURNS);
  }

  /** The operator speaks: the answer falls silent, and the provider learns how much of it was heard. */
  interrupted() {
    const heard = this.player.stop();
    if (!heard) return;
    this.stopped = heard.item;
    if (heard.item) this.send({ type: "conversation.item.truncate", item_id: heard.item, content_index: heard.index, audio_end_ms: heard.ms });
  }

  append(who, text, item) {
    const last = this.lines.at(-1);
    if (last && last.who === who && last.item === item && item) last.text = (last.text + text).slice(0, MOST_LINE_CHARS);
    else if (text) this.lines.push({ who, item, text: text.slice(0, MOST_LINE_CHARS), key: (this.said = (this.said ?? 0) + 1) });
    if (this.lines.length > MOST_LINES) this.lines.shift();
  }

  note(way, event, size) {
    const type = String(event.type);
    const shown = AUDIO.has(type) ? { ...event, [way === "in" ? "delta" : "audio"]: `(${count(Math.floor(size * 0.75))} bytes of sound)` } : event;
    this.noted = (this.noted ?? 0) + 1;
    this.events.push({ key: this.noted, at: this.began === undefined ? 0 : (performance.now() - this.began) / 1000, way, type, event: shown });
    // The sound's pieces must not push everything else out.
    if (this.events.length > MOST_EVENTS) this.events.splice(Math.max(0, this.events.findIndex((one) => AUDIO.has(one.type))), 1);
  }

  // --- what is sent ---

  send(event) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    if (this.socket.bufferedAmount > MOST_UNSENT_BYTES) {
      this.unsent += 1;
      return false;
    }
    this.socket.send(JSON.stringify(event));
    this.note("out", event, (event.audio ?? "").length);
    changed();
    return true;
  }

  say(text) {
    this.interrupted();
    const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
    if (!this.send({ type: "conversation.item.create", item })) return;
    this.append("you", text, null);
    this.asked(performance.now());
    this.send({ type: "response.create" });
  }

  async speak() {
    if (this.opening) return;
    this.opening = true;
    try {
      const microphone = await Microphone.open((audio) => this.send({ type: "input_audio_buffer.append", audio }));
      if (this.phase === "over") {
        microphone.close();
        return;
      }
      this.microphone = microphone;
      this.problem = "";
      this.detectTurns();
    } catch (error) {
      this.problem = error.name === "NotAllowedError" ? "The browser was not allowed to use the microphone." : error.name === "NotFoundError" ? "No microphone was found." : `The microphone cannot be used: ${error.message}`;
    } finally {
      this.opening = false;
      changed();
    }
  }

  /** A provider that would wait for a commit is asked to notice by itself when somebody has spoken. */
  detectTurns() {
    const session = this.session ?? {};
    if (session.audio?.input?.turn_detection === null) {
      this.send({ type: "session.update", session: { type: "realtime", audio: { input: { turn_detection: { type: "server_vad" } } } } });
    } else if (session.turn_detection === null) {
      this.send({ type: "session.update", session: { turn_detection: { type: "server_vad" } } });
    }
  }

  mute() {
    this.microphone?.close();
    this.microphone = null;
    changed();
  }
}

/** End what runs: the operator logs out. */
export function stop() {
  talk?.leave();
  talk = null;
}

// --- the view ------------------------------------------------------------------------------------

export const load = () => get("admin/deployments");

export function show(seen, path, page) {
  draw = page.redraw;
  const names = seen.groups.map((one) => one.group);
  if (!names.includes(group)) group = names[0] ?? "";
  const running = talk !== null && talk.phase !== "over";
  const open = talk?.phase === "open";
  return [
    h("h1", { key: "title" }, "Playground"),
    h("p", { key: "lead", class: "lead" }, "A session like any client's: it takes a place, is routed, counted and billed as such, under the name “dashboard”."),
    h("div", { key: "grid", class: "playground" },
      h("section", { class: "card", key: "talk", "aria-label": "Conversation" }, controls(names, running, open), state(), lines(), composer(open)),
      h("div", { key: "side", class: "side" }, measured(), events())),
  ];
}

function controls(names, running, open) {
  const start = () => {
    talk?.leave();
    talk = new Talk(group);
    talk.connect();
    changed();
  };
  const muted = noMicrophone();
  const speaking = talk?.microphone != null;
  return [
    h("div", { class: "buttons", key: "controls" },
      h("label", null, "Group ", h("select", { disabled: running, onchange: (event) => { group = event.target.value; } }, names.map((name) => h("option", { key: name, value: name, selected: name === group }, name)))),
      running ? h("button", { key: "stop", onclick: () => talk.leave() }, "Disconnect") : h("button", { key: "start", class: "primary", onclick: start, disabled: !names.length }, "Connect"),
      h("button", { key: "microphone", disabled: !open || Boolean(muted), "aria-pressed": String(speaking), class: speaking ? "speaking" : "", onclick: () => (speaking ? talk.mute() : talk.speak()) }, speaking ? "Microphone is on" : "Microphone")),
    muted ? h("p", { key: "muted", class: "hint" }, muted) : null,
  ];
}

function state() {
  const phase = talk === null ? ["off", "Not connected"] : { connecting: ["waiting", "Connecting"], open: ["ok", "Connected"], over: ["ended", "Disconnected"] }[talk.phase];
  const level = talk?.player && talk.player.context.state !== "closed" ? talk.player.level : 0;
  return h("div", { key: "state", class: "talkstate" },
    h("span", { role: "status" }, badge(phase[0] === "off" ? "ended" : phase[0], phase[1])),
    talk ? h("span", { class: "sound" }, h("meter", { min: 0, max: 1, value: Math.min(1, level), "aria-label": "Loudness of the answer" }), h("span", { id: "played" }, `${talk.player.played.toFixed(1)} s played`)) : null,
    talk?.unsent ? h("span", { class: "failed" }, `${count(talk.unsent)} pieces of speech lost: the network takes no more`) : null,
    talk?.problem ? h("p", { class: "problem", role: "alert" }, talk.problem) : null);
}

function lines() {
  const shown = talk?.lines ?? [];
  return h("div", { key: "lines", class: "lines", role: "log", "aria-label": "What was said", tabindex: "0" },
    shown.length ? shown.map((line) => h("p", { key: line.key, class: line.who }, h("span", { class: "who" }, line.who === "you" ? "You" : "Model"), line.text)) : h("p", { key: "empty", class: "empty" }, "Connect, then say or write something."));
}

function composer(open) {
  const send = (event) => {
    event.preventDefault();
    const text = draft.trim();
    if (!text || !open) return;
    talk.say(text);
    draft = "";
    event.target.elements.text.value = "";
  };
  return h("form", { key: "composer", class: "composer", onsubmit: send },
    h("input", { name: "text", "aria-label": "Text to send", placeholder: "Write something", autocomplete: "off", maxlength: "2000", oninput: (event) => { draft = event.target.value; } }),
    h("button", { class: "primary", disabled: !open }, "Send"));
}

function measured() {
  const last = talk?.turns[0];
  const tile = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));
  return h("section", { class: "card", key: "measured" }, h("h2", null, "Measured here"),
    h("dl", { class: "tiles" }, tile("Ready", latency(talk?.ready)), tile("First audio", latency(last?.audio)), tile("Turn", latency(last?.whole))),
    talk?.turns.length
      ? h("table", { class: "plain" }, h("thead", null, h("tr", null, ["Turn", "First audio", "Whole", "Sound", "Status"].map((name) => h("th", { scope: "col" }, name)))),
          h("tbody", null, talk.turns.map((turn) => h("tr", { key: turn.number }, h("td", null, turn.number), h("td", null, latency(turn.audio)), h("td", null, latency(turn.whole)), h("td", null, duration(turn.sound)), h("td", null, turn.status)))))
      : h("p", { class: "hint" }, "From connecting to the first event; from the end of what you said to the first sound; and to the answer's end."));
}

function events() {
  const wanted = filter.text.toLowerCase();
  const shown = (talk?.events ?? []).filter((one) => (filter.audio || !AUDIO.has(one.type)) && one.type.toLowerCase().includes(wanted)).reverse();
  return h("section", { class: "card", key: "events" }, h("h2", null, "Events"),
    h("div", { class: "filters" },
      h("label", null, "Filter ", h("input", { type: "search", placeholder: "part of a type", oninput: (event) => { filter.text = event.target.value; changed(); } })),
      h("label", { class: "check" }, h("input", { type: "checkbox", onchange: (event) => { filter.audio = event.target.checked; changed(); } }), " sound pieces")),
    shown.length
      ? h("ul", { class: "events", "aria-label": "Events, newest first", tabindex: "0" }, shown.slice(0, 200).map((one) => h("li", { key: one.key }, h("details", { ontoggle: (event) => { one.open = event.target.open; changed(); } },
          h("summary", null, h("span", { class: `way ${one.way}` }, one.way === "in" ? "←" : "→", h("span", { class: "hidden" }, one.way === "in" ? "received" : "sent")), h("span", { class: one.type === "error" ? "type failed" : "type" }, one.type), h("small", null, `${one.at.toFixed(2)} s`)),
          one.open ? h("pre", { tabindex: "0" }, JSON.stringify(one.event, null, 2)) : null))))
      : h("p", { class: "empty" }, "None yet."));
}
