// A phone and a business, written from docs/protocol.md and docs/api.md alone.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import WebSocket from "ws";

const FRAME_LIMIT_MS = 15_000;
let phones = Math.floor(Math.random() * 90_000_000);

/** A Saudi mobile number that no other test of this run uses. */
export function newPhone() {
  phones = (phones + 1) % 100_000_000;
  return `+9665${String(phones).padStart(8, "0")}`;
}

/** One connection: frames are queued as they come, and taken one by one. */
export class Session {
  #frames = [];
  #wake = () => {};

  constructor(socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) => socket.once("close", (code) => resolve(code)));
    socket.on("message", (data) => {
      const frame = JSON.parse(data);
      // That something which is in no stream may be missing is for those who look at more than their stream.
      if (frame.op !== "missed") this.#frames.push(frame);
      this.#wake();
    });
    this.closed.then(() => this.#wake());
  }

  send(op, fields = {}) {
    this.socket.send(JSON.stringify({ op, ...fields }));
  }

  /** The next frame. */
  async frame(limitMs = FRAME_LIMIT_MS) {
    const deadline = Date.now() + limitMs;
    while (this.#frames.length === 0) {
      const left = deadline - Date.now();
      if (left <= 0 || this.socket.readyState === WebSocket.CLOSED) throw new Error("no frame came");
      await Promise.race([new Promise((resolve) => (this.#wake = resolve)), sleep(left, null, { ref: false })]);
    }
    return this.#frames.shift();
  }

  /** The next frame, which must be of this kind. */
  async expect(op, limitMs) {
    const frame = await this.frame(limitMs);
    assert.equal(frame.op, op, JSON.stringify(frame));
    return frame;
  }

  /** The next messages, whether they waited or came just now: `caught_up` may stand between them. */
  async messages(count) {
    const messages = [];
    while (messages.length < count) {
      const frame = await this.frame();
      assert.match(frame.op, /^(message|caught_up)$/, JSON.stringify(frame));
      if (frame.op === "message") messages.push(frame);
    }
    return messages;
  }

  /** Fails if another message is on its way: what was written before comes before the pong. */
  async nothingElse() {
    this.send("ping");
    const frames = await this.until("pong");
    assert.deepEqual(frames.filter((frame) => frame.op === "message"), []);
  }

  /** Every frame up to the first of this kind. */
  async until(op) {
    const frames = [await this.frame()];
    while (frames.at(-1).op !== op) frames.push(await this.frame());
    return frames;
  }

  async silence(ms = 500) {
    const frame = await this.frame(ms).catch(() => null);
    assert.equal(frame, null, `expected nothing, got ${JSON.stringify(frame)}`);
  }

  close() {
    this.socket.close();
    return this.closed;
  }
}

/** Connects with a credential; without hello. */
export function dial(server, credential) {
  const url = `${server.url.replace("http", "ws")}/v1/ws`;
  const options = { headers: { Authorization: `Bearer ${credential}` }, perMessageDeflate: false };
  const socket = new WebSocket(url, ["eshaar.v1.json"], options);
  const session = new Session(socket);
  return new Promise((resolve, reject) => {
    socket.once("open", () => resolve(session));
    socket.once("error", reject);
  });
}

/** A user with the token of their phone number. */
export class Phone {
  constructor(server, number = newPhone()) {
    this.server = server;
    this.number = number;
    this.token = server.token(number);
  }

  async connect(hello = {}) {
    const session = await dial(this.server, this.token);
    session.send("hello", hello);
    assert.equal((await session.expect("welcome")).principal, this.number);
    return session;
  }

  /** Connects, takes so many messages and not one more, and goes without a word. */
  async fetch(count, hello = {}) {
    const session = await this.connect(hello);
    const messages = await session.messages(count);
    await session.nothingElse();
    await session.close();
    return messages;
  }
}

/** A business with an API key. */
export class Business {
  constructor(server, key) {
    this.server = server;
    this.key = key;
  }

  async request(method, path, body, headers = {}) {
    const answer = await fetch(this.server.url + path, {
      method,
      headers: { Authorization: `Bearer ${this.key}`, "Content-Type": "application/json", ...headers },
      body: body && JSON.stringify(body),
    });
    return { status: answer.status, body: await answer.json().catch(() => null) };
  }

  /** Posts one message that is accepted; its id. */
  async say(to, content, fields = {}) {
    const { status, body } = await this.request("POST", "/v1/messages", { to, type: "one_way", content, ...fields });
    assert.equal(status, 202, JSON.stringify(body));
    return body.id;
  }

  async sayAll(to, texts) {
    const ids = [];
    for (const text of texts) ids.push(await this.say(to, text));
    return ids;
  }

  /** The message, once it has this status. */
  async reaches(id, wanted) {
    for (const deadline = Date.now() + FRAME_LIMIT_MS; ; await sleep(50)) {
      const { status, body } = await this.request("GET", `/v1/messages/${id}`);
      if (status === 200 && body.status === wanted) return body;
      assert.ok(Date.now() < deadline, `not ${wanted}: ${JSON.stringify(body)}`);
    }
  }
}

export const contents = (messages) => messages.map((message) => message.content);
