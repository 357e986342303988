// The core of the protocol: online, offline, resume, gaps, devices, receipts, statuses, closing.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Business, Phone, contents, dial } from "./client.mjs";
import { Server } from "./server.mjs";

let server;
let demo;

before(async () => {
  server = await Server.start();
  demo = new Business(server, server.demoKey);
});

after(async () => {
  assert.equal(await server?.stop(), 0, "a clean end");
});

test("a message to a connected phone arrives at once", async () => {
  const phone = new Phone(server);
  const session = await phone.connect();
  await session.expect("caught_up");
  const id = await demo.say(phone.number, "تم استخدام بطاقتك", { reference: "tx-81" });
  const message = await session.expect("message", 2_000);
  assert.equal(message.id, id);
  assert.equal(message.content, "تم استخدام بطاقتك");
  assert.equal(message.from, "demo");
  assert.equal(message.reference, "tx-81");
  await session.close();
});

test("messages wait for a phone that is away and arrive in order", async () => {
  const phone = new Phone(server);
  const texts = Array.from({ length: 25 }, (_, n) => `message ${n}`);
  await demo.sayAll(phone.number, texts);
  assert.deepEqual(contents(await phone.fetch(25, { from: "start" })), texts);
});

test("a phone that resumes by its cursor gets what it missed, once, then what is live", async () => {
  const phone = new Phone(server);
  const first = await phone.connect();
  await first.expect("caught_up");
  await demo.say(phone.number, "one");
  const [{ cursor }] = await first.messages(1);
  await first.close();
  await demo.sayAll(phone.number, ["two", "three"]);
  const second = await phone.connect({ after: cursor });
  assert.deepEqual(contents(await second.messages(2)), ["two", "three"]);
  await second.expect("caught_up");
  await demo.say(phone.number, "four");
  assert.deepEqual(contents(await second.messages(1)), ["four"]);
  await second.silence();
  await second.close();
});

test("a cursor that is too old is answered with a gap", async () => {
  const short = await Server.start("store.stream_ttl_s=3");
  try {
    const business = new Business(short, short.demoKey);
    const phone = new Phone(short);
    await business.sayAll(phone.number, ["first", "second"]);
    const [{ cursor }] = await phone.fetch(2, { from: "start" });
    let frames = [];
    for (const deadline = Date.now() + 60_000; frames[0]?.op !== "gap" && Date.now() < deadline; ) {
      await sleep(1_000);
      await business.reaches(await business.say(phone.number, "kept"), "sent");
      const session = await phone.connect({ after: cursor });
      frames = await session.until("caught_up");
      await session.close();
    }
    const [gap, ...rest] = frames;
    assert.equal(gap.op, "gap");
    assert.equal(gap.reason, "too_old");
    assert.ok(gap.oldest);
    assert.ok(contents(rest).includes("kept"));
  } finally {
    await short.stop();
  }
});

test("what is no cursor closes the session", async () => {
  const session = await dial(server, new Phone(server).token);
  session.send("hello", { after: "garbage" });
  assert.equal((await session.expect("bye")).code, 4505);
  assert.equal(await session.closed, 4505);
});

test("every device of a user gets every message", async () => {
  const phone = new Phone(server);
  const devices = [await phone.connect({ device: "phone" }), await phone.connect({ device: "tablet" })];
  for (const device of devices) await device.expect("caught_up");
  const texts = Array.from({ length: 10 }, (_, n) => `message ${n}`);
  await demo.sayAll(phone.number, texts);
  for (const device of devices) {
    assert.deepEqual(contents(await device.messages(10)), texts);
    await device.silence(200);
    await device.close();
  }
});

test("an ack delivers, and delivery goes on behind it", async () => {
  const phone = new Phone(server);
  const ids = await demo.sayAll(phone.number, ["one", "two", "three"]);
  const session = await phone.connect({ from: "start" });
  const messages = await session.messages(3);
  session.send("ack", { cursor: messages[1].cursor });
  await demo.reaches(ids[0], "delivered");
  await demo.reaches(ids[1], "delivered");
  session.send("ack", { ids: [ids[2]] });
  await demo.reaches(ids[2], "delivered");
  await session.close();
  await phone.fetch(0);
});

test("a sender is told of delivered and read", async () => {
  const phone = new Phone(server);
  const sender = await dial(server, server.demoKey);
  sender.send("hello");
  assert.equal((await sender.expect("welcome")).principal, "demo");
  await sender.expect("caught_up");
  const session = await phone.connect();
  await session.expect("caught_up");
  const id = await demo.say(phone.number, "hello");
  const [message] = await session.messages(1);
  const told = async () => {
    for (;;) {
      const frame = await sender.expect("status");
      if (frame.id === id) return frame.status;
    }
  };
  session.send("ack", { cursor: message.cursor });
  assert.equal(await told(), "delivered");
  session.send("read", { ids: [id] });
  assert.equal(await told(), "read");
  const { timeline } = await demo.reaches(id, "read");
  assert.deepEqual(timeline.map((step) => step.step), ["sent", "delivered", "read"]);
  await sender.close();
  await session.close();
});

test("a request repeated with its key is one message", async () => {
  const phone = new Phone(server);
  const body = { to: phone.number, type: "one_way", content: "pay 5" };
  const key = { "Idempotency-Key": `node-${phone.number}` };
  const first = await demo.request("POST", "/v1/messages", body, key);
  const second = await demo.request("POST", "/v1/messages", body, key);
  assert.equal(first.status, 202);
  assert.deepEqual(second, first);
  assert.deepEqual(contents(await phone.fetch(1, { from: "start" })), ["pay 5"]);
});

test("ping is answered, and a bad frame closes with a reason", async () => {
  const session = await new Phone(server).connect();
  await session.expect("caught_up");
  session.send("ping");
  await session.expect("pong");
  session.socket.send("not json");
  const bye = await session.expect("bye");
  assert.equal(bye.reason, "bad_frame");
  assert.ok(bye.detail);
  assert.equal(await session.closed, 4505);
});
