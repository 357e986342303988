// What the phones and the agent of the try-it console share: calls, a WebSocket that is kept open, ticks, a line to write on.
"use strict";

const KEPT_MESSAGES = 100; // on a phone's screen

const csrf = document.querySelector('meta[name="csrf-token"]').content;

/** An address of our server. The page is at `/console`, perhaps under a prefix of a proxy. */
const address = (path) => new URL(`.${path}`, location.href);

/** Calls the console's own server. Throws an Error that can be shown. */
async function call(method, path, body, headers = {}) {
  const init = { method, headers: { ...headers } };
  if (method !== "GET") {
    init.headers["x-csrf-token"] = csrf;
    init.headers["content-type"] = "application/json";
    init.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(address(path), init);
  } catch {
    throw new Error("The server cannot be reached.");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return { answer, replayed: response.headers.get("idempotency-replayed") === "true" };
  const where = answer.field ? `${answer.field}: ` : "";
  throw Object.assign(new Error(where + (answer.detail ?? `status ${response.status}`)), { status: response.status });
}

function element(tag, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };
const clock = new Intl.DateTimeFormat(undefined, CLOCK);
const time = (at) => clock.format(new Date(at));

/** 128 random bits; `crypto.randomUUID` is there on secure origins only. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const base64url = (ascii) => btoa(ascii).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

/** A WebSocket that is kept open: who it is says a subclass, and what it does with frames. */
class Client {
  constructor(card) {
    this.card = card;
    this.screen = card.querySelector(".screen");
    this.stateLine = card.querySelector(".state");
    this.attempt = 0;
    this.early = new Map(); // how far messages have come that are not known by their ids yet
  }

  state(name, text) {
    this.stateLine.dataset.state = name;
    this.stateLine.textContent = text;
  }

  async connect() {
    clearTimeout(this.retry);
    this.state("connecting", "Connecting");
    const generation = (this.generation = (this.generation ?? 0) + 1);
    let token;
    try {
      token = await this.credential();
    } catch (error) {
      if (generation !== this.generation) return;
      if (error.status === 401) return this.refused(error.message);
      return this.connectLater();
    }
    if (generation !== this.generation) return; // switched off, or connected anew, meanwhile
    this.attach(token);
  }

  attach(token) {
    this.token = token.access_token;
    const url = address("/v1/ws");
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    // Not in the address, which logs keep.
    const protocols = ["eshaar.v1.json", `eshaar.token.${base64url(token.access_token)}`];
    const socket = (this.socket = new WebSocket(url, protocols));
    this.bye = null;
    socket.addEventListener("open", () => {
      if (socket === this.socket) this.say({ op: "hello", device: "console", ...this.greeting() });
    });
    socket.addEventListener("message", (event) => {
      if (socket !== this.socket) return;
      const frame = JSON.parse(event.data);
      if (frame.op === "welcome") {
        this.attempt = 0;
        this.state("online", "Online");
      }
      if (frame.op === "bye") this.bye = frame;
      this.hear(frame);
    });
    socket.addEventListener("close", (event) => socket === this.socket && this.closed(event));
    if (token.valid_for_ms) this.renewAfter(token.valid_for_ms);
  }

  renewAfter(validForMs) {
    clearTimeout(this.renewal);
    this.renewal = setTimeout(async () => {
      try {
        const { access_token, valid_for_ms } = await this.credential();
        this.token = access_token;
        this.say({ op: "renew", access_token });
        this.renewAfter(valid_for_ms);
      } catch {
        this.renewAfter(30_000);
      }
    }, validForMs * 0.8);
  }

  disconnect() {
    this.generation += 1;
    clearTimeout(this.retry);
    clearTimeout(this.renewal);
    const socket = this.socket;
    this.socket = null;
    socket?.close(1000);
    this.state("offline", "Offline");
  }

  refused(text) {
    this.disconnect();
    this.state("refused", text);
  }

  closed(event) {
    clearTimeout(this.renewal);
    this.socket = null;
    if (event.code === 4503) return this.connect(); // the token ran out: the next one is new
    if (event.code >= 4500) return this.refused(this.bye?.detail ?? this.bye?.reason ?? `Closed (${event.code})`);
    this.connectLater(this.bye?.reconnect_after_ms);
  }

  connectLater(afterMs) {
    this.state("connecting", "Reconnecting");
    const backoff = Math.min(10_000, 250 * 2 ** this.attempt++) * (0.5 + Math.random());
    this.retry = setTimeout(() => this.connect(), afterMs ?? backoff);
  }

  isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  say(frame) {
    if (this.isOpen()) this.socket.send(JSON.stringify(frame));
  }

  /** The API over HTTP, as this client. */
  async ask(method, path, body) {
    const headers = { authorization: `Bearer ${this.token}`, "content-type": "application/json" };
    const response = await fetch(address(path), { method, headers, body: body && JSON.stringify(body) });
    if (!response.ok) throw Object.assign(new Error(`status ${response.status}`), { status: response.status });
    return response.json();
  }

  /** How far one of the messages has come: maybe one that waits for its `sent`, and has no id before that. */
  reached(messages, { id, status }) {
    const message = messages.find((message) => message.id === id);
    if (message) return advance(message, status);
    const early = this.early.get(id) ?? { step: "sending" };
    advance(early, status);
    this.early.set(id, early);
    if (this.early.size > KEPT_MESSAGES) this.early.delete(this.early.keys().next().value);
  }

  /** An own message that came by another way than its `sent`: each that still waits for that may be the same one. */
  comeFromElsewhere(messages, message) {
    return this.identified({ ...message, own: true, step: "sent", rivals: refsBeingSent(messages) });
  }

  /** The messages, of which that of `ref` is accepted under an id: it may have come from elsewhere before. */
  accept(messages, { ref, id, sent_at }) {
    const message = messages.find((message) => message.ref === ref);
    if (!message) return messages;
    advance(message, "sent");
    this.identified(Object.assign(message, { id, sentAt: sent_at }));
    return messages.filter((other) => {
      if (other === message || other.id !== id) return true;
      advance(message, other.step);
      return false;
    });
  }

  /** A message of which the id has become known, as far as it has come. */
  identified(message) {
    const early = this.early.get(message.id);
    if (early) advance(message, early.step);
    this.early.delete(message.id);
    return message;
  }

  /** Shows messages, at their end if that was in view; none that may be one that is still being sent. */
  show(known) {
    const sending = refsBeingSent(known);
    const messages = known.filter((message) => !message.rivals?.some((ref) => sending.includes(ref)));
    const atEnd = this.screen.scrollHeight - this.screen.scrollTop - this.screen.clientHeight < 40;
    const nothing = element("li", { className: "empty", textContent: "No messages yet." });
    this.screen.replaceChildren(...(messages.length ? messages.map((message) => this.bubble(message)) : [nothing]));
    if (atEnd) this.screen.scrollTop = this.screen.scrollHeight;
  }
}

const STEPS = ["sending", "refused", "sent", "received", "failed", "expired", "cancelled", "delivered", "read"];

/** A message moves on; a status that comes late changes nothing. */
function advance(message, step) {
  if (STEPS.indexOf(step) > STEPS.indexOf(message.step)) message.step = step;
}

/** What waits for its `sent`. */
function refsBeingSent(messages) {
  return messages.filter((message) => message.step === "sending").map((message) => message.ref);
}

function ticks(message) {
  const text = { sending: "…", refused: "✗", sent: "✓", received: "✓" }[message.step] ?? "✓✓";
  const mark = element("span", { className: "ticks", textContent: text, dataset: { step: message.step } });
  mark.setAttribute("role", "img");
  mark.setAttribute("aria-label", message.step);
  return mark;
}

/** The line below a screen that a user writes on: it sends what is written, and tells while it is being written. */
function composer(form, { send, typing }) {
  const input = form.querySelector("input");
  let told = false;
  let repeat = 0;
  let idle;
  const stop = () => {
    clearTimeout(idle);
    if (told) typing(false);
    told = false;
  };
  input.addEventListener("input", () => {
    clearTimeout(idle);
    idle = setTimeout(stop, 4_000);
    if (told && performance.now() < repeat) return;
    told = typing(true);
    repeat = performance.now() + 3_000;
  });
  input.addEventListener("blur", stop);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const content = input.value;
    if (!content.trim()) return;
    told = false;
    clearTimeout(idle);
    send(content);
    input.value = "";
  });
}
