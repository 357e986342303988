// The agent of the try-it console: the business's side of its conversations with the page's phones (docs/protocol.md, Chat).
"use strict";

class Agent extends Client {
  constructor(card) {
    super(card);
    this.business = card.dataset.business;
    this.typingLine = card.querySelector(".typing");
    this.talks = new Map(); // by the phone's number
    for (const choice of card.querySelectorAll('input[name="talk"]')) {
      this.talks.set(choice.value, { choice, conversation: null, messages: [], typing: false });
      choice.addEventListener("change", () => this.look());
    }
    composer(card.querySelector(".composer"), {
      send: (content) => this.write(content),
      typing: (on) => this.type(on),
    });
    this.draw();
    this.connect();
  }

  /** The phone that is looked at, and what is said to it. */
  get chosen() {
    return [...this.talks].find(([, talk]) => talk.choice.checked);
  }

  async credential() {
    return (await call("POST", "/console/agent", {})).answer;
  }

  greeting() {
    return {};
  }

  hear(frame) {
    switch (frame.op) {
      case "welcome":
      case "missed":
        this.catchUp();
        break;
      case "message":
        this.take(frame);
        break;
      case "sent":
        this.sent(frame);
        break;
      case "status":
        this.reached([...this.talks.values()].flatMap(({ messages }) => messages), frame);
        this.draw();
        break;
      case "typing":
        if (frame.from !== this.business && this.talks.has(frame.from)) {
          this.talks.get(frame.from).typing = frame.on;
          this.draw();
        }
        break;
      case "conversation":
        if (this.talks.has(frame.with) && frame.change !== "read") this.catchUp();
        break;
      case "error":
        this.failed(frame);
        break;
      default: // caught_up, joined, pong: nothing to show
    }
  }

  /** Asks what is said in the active conversations with the page's phones: hints alone may leave something out. */
  async catchUp() {
    try {
      const list = await this.ask("GET", "/v1/conversations?status=active&limit=100");
      for (const { id, with: phone } of list.conversations) {
        const talk = this.talks.get(phone);
        if (!talk) continue;
        const page = await this.ask("GET", `/v1/conversations/${id}/messages?limit=50`);
        this.enter(talk, id);
        for (const message of page.messages) this.put(talk, message);
      }
      for (const talk of this.talks.values()) {
        for (const message of talk.messages.filter((message) => message.step === "sending")) this.send(message);
      }
      this.look();
    } catch {
      // the socket is gone too, or will be asked again
    }
  }

  enter(talk, conversation) {
    if (talk.conversation !== conversation) talk.messages = talk.messages.filter((message) => message.step === "sending");
    talk.conversation = conversation;
    this.say({ op: "join", conversation_id: conversation });
  }

  /** A message of either side; known already, it may have moved on. */
  put(talk, { id, from, content, sent_at, status }) {
    const own = from === this.business;
    let message = talk.messages.find((message) => message.id === id);
    if (!message) {
      message = { id, content, sentAt: sent_at };
      message = own ? this.comeFromElsewhere(talk.messages, message) : { ...message, own, step: "received" };
      talk.messages.push(message);
      talk.messages.splice(0, talk.messages.length - KEPT_MESSAGES);
    }
    if (status) advance(message, status);
    return message;
  }

  take(frame) {
    const talk = this.talks.get(frame.from === this.business ? frame.to : frame.from);
    if (!talk) return;
    if (talk.conversation !== frame.conversation_id) this.enter(talk, frame.conversation_id);
    const message = this.put(talk, frame);
    talk.typing = talk.typing && message.own;
    if (!message.own && message.step === "received") {
      this.say({ op: "ack", ids: [message.id] });
      advance(message, "delivered");
    }
    this.look();
  }

  /** Whatever is looked at is read. */
  look() {
    const [, talk] = this.chosen;
    const unread = talk.messages.filter((message) => !message.own && message.step !== "read");
    if (unread.length && this.isOpen() && document.visibilityState === "visible") {
      this.say({ op: "read", ids: unread.map((message) => message.id) });
      for (const message of unread) advance(message, "read");
    }
    this.draw();
  }

  type(on) {
    const [, { conversation }] = this.chosen;
    if (!conversation || !this.isOpen()) return false;
    this.say({ op: "typing", conversation_id: conversation, on });
    return on;
  }

  write(content) {
    const [to, talk] = this.chosen;
    const message = { id: null, ref: randomKey(), to, own: true, content, sentAt: Date.now(), step: "sending" };
    talk.messages.push(message);
    this.send(message);
    this.draw();
  }

  send({ ref, to, content }) {
    this.say({ op: "send", ref, to, content });
  }

  sent(frame) {
    for (const talk of this.talks.values()) {
      if (!talk.messages.some((message) => message.ref === frame.ref)) continue;
      talk.messages = this.accept(talk.messages, frame);
      if (talk.conversation !== frame.conversation_id) this.enter(talk, frame.conversation_id);
    }
    this.draw();
  }

  failed({ ref, temporary, retry_after_ms }) {
    for (const { messages } of this.talks.values()) {
      const message = messages.find((message) => ref && message.ref === ref);
      if (!message) continue;
      if (temporary) setTimeout(() => this.send(message), retry_after_ms ?? 1_000);
      else advance(message, "refused");
    }
    this.draw();
  }

  draw() {
    const [phone, chosen] = this.chosen;
    this.show(chosen.messages);
    this.typingLine.textContent = chosen.typing ? `${phone} is typing` : "";
    for (const { choice, messages } of this.talks.values()) {
      const unread = messages.filter((message) => !message.own && message.step !== "read").length;
      const badge = choice.parentElement.querySelector(".badge");
      badge.textContent = unread || "";
      badge.hidden = !unread;
    }
  }

  bubble(message) {
    const meta = element("span", { className: "meta" }, time(message.sentAt));
    if (message.own) meta.append(ticks(message));
    const content = element("span", { className: "content", dir: "auto", textContent: message.content });
    const bubble = element("div", { className: "message" }, content, meta);
    return element("li", { className: message.own ? "own" : "" }, bubble);
  }
}

{
  const agent = new Agent(document.querySelector(".agent"));
  document.addEventListener("visibilitychange", () => agent.look());
}
