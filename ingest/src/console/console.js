// The try-it console: a sender, two phones that are WebSocket clients (docs/protocol.md), and a timeline.
"use strict";

const KEPT_MESSAGES = 100; // on a phone's screen
const FOLLOWED = 8; // in the timeline
const SETTLE_MS = 50; // between two acknowledgements, or two drawings, of a phone: a flood is taken in steps
const FINAL = new Set(["read", "failed", "expired", "cancelled"]);

const csrf = document.querySelector('meta[name="csrf-token"]').content;

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
    response = await fetch(path, init);
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

// ---- the timeline ----------------------------------------------------------------------------------------------

const timeline = {
  list: document.getElementById("timeline"),
  followed: [], // newest first

  follow(id, content, phone) {
    if (this.followed.some((message) => message.id === id)) return;
    const steps = element("ol", { className: "steps" });
    const what = element("bdi", { textContent: content });
    const about = element("div", { className: "about" }, what, element("span", { textContent: `to ${phone}` }));
    const row = element("li", { dataset: { id } }, about, steps);
    const message = { id, row, steps, since: Date.now(), status: null };
    this.followed.unshift(message);
    this.list.prepend(row);
    for (const old of this.followed.splice(FOLLOWED)) old.row.remove();
    document.getElementById("timeline-empty").hidden = true;
    this.show(message, [{ step: "sent", at: new Date().toISOString() }]);
    this.look();
  },

  show(message, reached) {
    const at = Object.fromEntries(reached.map(({ step, at }) => [step, at]));
    const ended = ["failed", "expired", "cancelled"].find((step) => at[step] && !at.delivered);
    const wanted = ended ? ["sent", ended] : ["sent", "delivered", "read"];
    message.steps.replaceChildren(
      ...wanted.map((step) => {
        const label = step[0].toUpperCase() + step.slice(1);
        const when = element("time", { textContent: "–" });
        if (at[step]) {
          const after = Date.parse(at[step]) - Date.parse(at.sent);
          when.dateTime = at[step];
          when.textContent = step === "sent" ? time(at.sent) : after < 10_000 ? `+${after} ms` : time(at[step]);
        }
        const state = step === ended ? "done bad" : at[step] ? "done" : "";
        return element("li", { className: state, dataset: { step } }, label, when);
      }),
    );
  },

  /** Asks where each message is that has not arrived for good; soon while it is new, then ever less often. */
  async look() {
    clearTimeout(this.timer);
    if (this.looking) return void (this.again = true);
    this.looking = true;
    this.again = false;
    const open = this.followed.filter((message) => !FINAL.has(message.status));
    await Promise.all(
      open.map(async (message) => {
        try {
          const { answer } = await call("GET", `/console/messages/${message.id}`);
          message.status = answer.status;
          this.show(message, answer.timeline);
        } catch (error) {
          if (error.status === 401) message.status = "read"; // the session ended: stop asking
        }
      }),
    );
    this.looking = false;
    if (!open.length && !this.again) return;
    const age = Date.now() - Math.max(...open.map((message) => message.since));
    const wait = age < 5_000 ? 300 : age < 60_000 ? 1_000 : 5_000;
    this.timer = setTimeout(() => this.look(), this.again ? 100 : wait);
  },
};

// ---- a phone ---------------------------------------------------------------------------------------------------

class Phone {
  constructor(card) {
    this.card = card;
    this.number = card.dataset.phone;
    this.screen = card.querySelector(".screen");
    this.stateLine = card.querySelector(".state");
    this.connectSwitch = card.querySelector(".connect");
    this.autoAck = card.querySelector(".auto-ack");
    this.ackButton = card.querySelector(".ack");
    this.key = `eshaar.phone.${this.number}`;
    this.attempt = 0;
    this.restore();
    this.connectSwitch.addEventListener("change", () => {
      if (this.connectSwitch.checked) this.connect();
      else this.disconnect();
    });
    this.autoAck.addEventListener("change", () => this.changed());
    this.ackButton.addEventListener("click", () => {
      this.acknowledgeAll();
      this.changed();
    });
    this.draw();
    this.connect();
  }

  // What the phone has, as an app would keep it: in this tab, over a reload.
  restore() {
    let kept = {};
    try {
      kept = JSON.parse(sessionStorage.getItem(this.key)) ?? {};
    } catch {
      // unreadable: begin anew
    }
    this.messages = kept.messages ?? [];
    this.cursor = kept.cursor ?? null; // of the last message acknowledged: giving it back is a receipt
  }

  keep() {
    const gone = this.messages.splice(0, this.messages.length - KEPT_MESSAGES);
    for (const message of gone) this.heard?.delete(message.id);
    try {
      sessionStorage.setItem(this.key, JSON.stringify({ messages: this.messages, cursor: this.cursor }));
    } catch {
      // full: a reload begins from what was acknowledged
    }
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
      token = (await call("POST", "/console/tokens", { phone: this.number })).answer;
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
    this.heard = new Set(); // ids of what this connection brought
    this.received = null; // its newest cursor
    const url = new URL("/v1/ws", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("access_token", token.access_token);
    const socket = (this.socket = new WebSocket(url, "eshaar.v1.json"));
    this.bye = null;
    socket.addEventListener("open", () => {
      const after = this.cursor ? { after: this.cursor } : {};
      if (socket === this.socket) this.say({ op: "hello", device: "console", ...after });
    });
    socket.addEventListener("message", (event) => socket === this.socket && this.hear(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => socket === this.socket && this.closed(event));
    this.renewAfter(token.valid_for_ms);
  }

  renewAfter(validForMs) {
    clearTimeout(this.renewal);
    this.renewal = setTimeout(async () => {
      try {
        const { answer } = await call("POST", "/console/tokens", { phone: this.number });
        this.token = answer.access_token;
        this.say({ op: "renew", access_token: answer.access_token });
        this.renewAfter(answer.valid_for_ms);
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
    this.connectSwitch.checked = false;
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

  hear(frame) {
    switch (frame.op) {
      case "welcome":
        this.attempt = 0;
        this.state("online", "Online");
        this.tellReads();
        break;
      case "message": // without a cursor: what the user said on another device
        if (frame.cursor) this.receive(frame);
        break;
      case "gap": // what follows begins at the oldest kept; ids tell what is known already
        this.cursor = null;
        this.keep();
        break;
      case "bye":
        this.bye = frame;
        break;
      default: // caught_up, renewed, pong, error: nothing to show
    }
  }

  receive({ id, cursor, content, priority, sent_at }) {
    const known = this.messages.find((message) => message.id === id);
    this.received = cursor;
    this.heard.add(id);
    if (!known) this.messages.push({ id, content, priority, sentAt: sent_at, step: "received" });
    this.changed();
  }

  unacknowledged() {
    return this.messages.filter((message) => message.step === "received");
  }

  /** Acknowledges all that this connection has brought. */
  acknowledgeAll() {
    if (!this.received || this.received === this.cursor || !this.isOpen()) return;
    this.say({ op: "ack", cursor: this.received });
    this.cursor = this.received;
    for (const message of this.unacknowledged()) if (this.heard.has(message.id)) message.step = "delivered";
  }

  /** Opening a message reads it; while offline, that is told at the next welcome. */
  read(message) {
    if (message.step === "read") return;
    message.step = "read";
    message.untold = true;
    this.tellReads();
    this.changed();
  }

  /** Over the socket for what it brought, over HTTP for what an earlier one did. */
  async tellReads() {
    if (!this.isOpen()) return;
    for (const message of this.messages.filter((message) => message.untold)) {
      message.untold = false;
      if (this.heard.has(message.id)) {
        this.say({ op: "read", ids: [message.id] });
        continue;
      }
      const headers = { authorization: `Bearer ${this.token}` };
      const told = await fetch(`/v1/messages/${message.id}/read`, { method: "POST", headers }).catch(() => null);
      message.untold = !told || told.status >= 500;
    }
    this.keep();
  }

  /** Something changed: acknowledge if that is wanted, keep, draw; at once, or soon if that was done just now. */
  changed() {
    if (this.pending) return;
    const wait = Math.max(0, SETTLE_MS - (performance.now() - (this.settledAt ?? -SETTLE_MS)));
    this.pending = setTimeout(() => {
      this.pending = null;
      this.settledAt = performance.now();
      if (this.autoAck.checked) this.acknowledgeAll();
      this.keep();
      this.draw();
      timeline.look();
    }, wait);
  }

  draw() {
    const waiting = this.unacknowledged().length;
    this.ackButton.disabled = waiting === 0;
    this.ackButton.textContent = waiting ? `Acknowledge ${waiting}` : "Acknowledge";
    if (!this.messages.length) return;
    const atEnd = this.screen.scrollHeight - this.screen.scrollTop - this.screen.clientHeight < 40;
    this.screen.replaceChildren(...this.messages.map((message) => this.bubble(message)));
    if (atEnd) this.screen.scrollTop = this.screen.scrollHeight;
  }

  bubble(message) {
    const ticks = message.step === "received" ? "✓" : "✓✓";
    const meta = element("span", { className: "meta" });
    if (message.priority !== "normal") {
      meta.append(element("span", { className: `priority ${message.priority}`, textContent: message.priority }));
    }
    const mark = element("span", { className: "ticks", textContent: ticks, dataset: { step: message.step } });
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", message.step);
    meta.append(time(message.sentAt), mark);
    const content = element("span", { className: "content", dir: "auto", textContent: message.content });
    const title = message.step === "read" ? "" : "Open it: that marks it read";
    const button = element("button", { type: "button", className: "message", title }, content, meta);
    button.addEventListener("click", () => this.read(message));
    return element("li", { dataset: { id: message.id } }, button);
  }
}

// ---- the sender ------------------------------------------------------------------------------------------------

const form = document.getElementById("sender");
const outcome = document.getElementById("outcome");
const repeat = document.getElementById("repeat");
let last = null;

function say(kind, text) {
  outcome.dataset.kind = kind;
  outcome.textContent = text;
}

async function submit({ body, key, name }) {
  for (const button of form.querySelectorAll("button")) button.disabled = true;
  say("", "Sending");
  try {
    const { answer, replayed } = await call("POST", "/console/messages", body, { "idempotency-key": key });
    const known = replayed || timeline.followed.some((message) => message.id === answer.id);
    say("good", known ? `The same key: still the one message ${answer.id}.` : `Accepted as ${answer.id}.`);
    timeline.follow(answer.id, body.content, name);
    last = { body, key, name };
    return true;
  } catch (error) {
    say("bad", error.message);
    return false;
  } finally {
    for (const button of form.querySelectorAll("button")) button.disabled = false;
    repeat.disabled = !last;
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = new FormData(form);
  const [to, content, priority] = ["to", "content", "priority"].map((name) => fields.get(name));
  const body = { to, type: "one_way", content, priority };
  if (fields.get("ttl")) body.ttl_s = Number(fields.get("ttl"));
  const name = `phone ${document.querySelector(`[data-phone="${CSS.escape(body.to)}"]`).dataset.name}`;
  if (await submit({ body, key: fields.get("key") || randomKey(), name })) form.elements.content.value = "";
  form.elements.content.focus();
});

repeat.addEventListener("click", () => last && submit(last));

/** 128 random bits; `crypto.randomUUID` is there on secure origins only. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

for (const card of document.querySelectorAll(".phone")) new Phone(card);
