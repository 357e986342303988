// The try-it console: a sender, two phones that are WebSocket clients (docs/protocol.md), and a timeline.
"use strict";

const FOLLOWED = 8; // in the timeline
const SETTLE_MS = 50; // between two acknowledgements, or two drawings, of a phone: a flood is taken in steps
const FINAL = new Set(["read", "failed", "expired", "cancelled"]);

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

class Phone extends Client {
  constructor(card) {
    super(card);
    this.number = card.dataset.phone;
    this.connectSwitch = card.querySelector(".connect");
    this.autoAck = card.querySelector(".auto-ack");
    this.ackButton = card.querySelector(".ack");
    this.typingLine = card.querySelector(".typing");
    this.key = `eshaar.phone.${this.number}`;
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
    composer(card.querySelector(".composer"), {
      send: (content) => this.write(content),
      typing: (on) => this.type(on),
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
    this.conversation = kept.conversation ?? null;
    this.cursor = kept.cursor ?? null; // of the last message acknowledged: giving it back is a receipt
  }

  keep() {
    const gone = this.messages.splice(0, this.messages.length - KEPT_MESSAGES);
    for (const message of gone) this.heard?.delete(message.id);
    const { messages, conversation, cursor } = this;
    try {
      sessionStorage.setItem(this.key, JSON.stringify({ messages, conversation, cursor }));
    } catch {
      // full: a reload begins from what was acknowledged
    }
  }

  async credential() {
    return (await call("POST", "/console/tokens", { phone: this.number })).answer;
  }

  greeting() {
    this.heard = new Set(); // ids of what this connection brought
    this.received = null; // its newest cursor
    return this.cursor ? { after: this.cursor } : {};
  }

  refused(text) {
    super.refused(text);
    this.connectSwitch.checked = false;
  }

  hear(frame) {
    switch (frame.op) {
      case "welcome":
        this.tellReads();
        if (this.conversation) this.say({ op: "join", conversation_id: this.conversation });
        for (const message of this.messages.filter((message) => message.step === "sending")) this.send(message);
        break;
      case "message": // without a cursor: what the user said on another device
        if (frame.conversation_id) this.enter(frame.conversation_id);
        if (frame.cursor) this.receive(frame);
        else this.saidElsewhere(frame);
        break;
      case "sent":
        this.enter(frame.conversation_id);
        this.messages = this.accept(this.messages, frame);
        this.changed();
        break;
      case "status":
        this.reached(this.messages, frame);
        this.changed();
        break;
      case "typing":
        this.typingLine.textContent = frame.on && frame.from !== this.number ? `${frame.from} is typing` : "";
        break;
      case "conversation":
        if (frame.change === "closed" && frame.conversation_id === this.conversation) this.conversation = null;
        break;
      case "error":
        this.failed(frame);
        break;
      case "gap": // what follows begins at the oldest kept; ids tell what is known already
        this.cursor = null;
        this.keep();
        break;
      default: // caught_up, renewed, pong, joined, left, missed: nothing to show
    }
  }

  /** From now on it is told who types there. */
  enter(conversation) {
    if (this.conversation === conversation) return;
    this.conversation = conversation;
    this.say({ op: "join", conversation_id: conversation });
  }

  type(on) {
    if (!this.conversation || !this.isOpen()) return false;
    this.say({ op: "typing", conversation_id: this.conversation, on });
    return on;
  }

  /** Sends to the business; while offline, that is done at the next welcome, under the same ref. */
  write(content) {
    const message = { id: null, ref: randomKey(), own: true, content, priority: "normal", sentAt: Date.now(), step: "sending" };
    this.messages.push(message);
    this.send(message);
    this.changed();
  }

  send({ ref, content }) {
    this.say({ op: "send", ref, to: this.card.dataset.business, content });
  }

  saidElsewhere({ id, content, priority, sent_at }) {
    if (this.messages.some((message) => message.id === id)) return;
    this.messages.push(this.comeFromElsewhere(this.messages, { id, content, priority, sentAt: sent_at }));
    this.changed();
  }

  failed({ ref, temporary, retry_after_ms }) {
    const message = this.messages.find((message) => ref && message.ref === ref);
    if (!message) return;
    if (temporary) setTimeout(() => this.send(message), retry_after_ms ?? 1_000);
    else advance(message, "refused");
    this.changed();
  }

  receive({ id, cursor, content, priority, sent_at }) {
    const known = this.messages.find((message) => message.id === id);
    this.received = cursor;
    this.heard.add(id);
    this.typingLine.textContent = "";
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
    if (message.own || message.step === "read") return;
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
      const told = await this.ask("POST", `/v1/messages/${message.id}/read`).catch((error) => error);
      message.untold = told instanceof Error && !(told.status < 500);
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
    if (this.messages.length) this.show(this.messages);
  }

  bubble(message) {
    const meta = element("span", { className: "meta" });
    if (message.priority !== "normal") {
      meta.append(element("span", { className: `priority ${message.priority}`, textContent: message.priority }));
    }
    meta.append(time(message.sentAt), ticks(message));
    const content = element("span", { className: "content", dir: "auto", textContent: message.content });
    if (message.own) return element("li", { className: "own" }, element("div", { className: "message" }, content, meta));
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

for (const card of document.querySelectorAll(".phone")) new Phone(card);
