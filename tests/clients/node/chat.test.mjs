// Chat: a phone and an agent, from the documents alone.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { after, before, test } from "node:test";
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

async function agent() {
  const session = await dial(server, server.demoKey);
  session.send("hello");
  await session.until("caught_up");
  return session;
}

/** Reads on until a frame comes that has all of this. */
async function find(session, wanted) {
  for (;;) {
    const frame = await session.frame();
    if (Object.entries(wanted).every(([field, value]) => frame[field] === value)) return frame;
  }
}

async function say(session, fields) {
  const ref = randomUUID();
  session.send("send", { ref, ...fields });
  return find(session, { op: "sent", ref });
}

test("a phone asks, an agent answers, and the ticks go forward on both sides", async () => {
  const phone = new Phone(server);
  const device = await phone.connect();
  await device.until("caught_up");
  const desk = await agent();
  const asked = await say(device, { to: "demo", content: "هل فُقدت بطاقتي؟" });
  const question = await find(desk, { op: "message", id: asked.id });
  assert.equal(question.content, "هل فُقدت بطاقتي؟");
  assert.equal(question.previous, null);
  desk.send("ack", { ids: [asked.id] });
  await find(device, { op: "status", id: asked.id, status: "delivered" });
  desk.send("read", { conversation_id: asked.conversation_id, up_to: question.position });
  await find(device, { op: "status", id: asked.id, status: "read" });

  const answered = await say(desk, { conversation_id: asked.conversation_id, content: "لا" });
  const answer = await find(device, { op: "message", id: answered.id });
  device.send("ack", { cursor: answer.cursor });
  await find(desk, { op: "status", id: answered.id, status: "delivered" });
  device.send("read", { ids: [answered.id] });
  await find(desk, { op: "status", id: answered.id, status: "read" });

  const path = `/v1/conversations/${asked.conversation_id}`;
  const history = await demo.request("GET", `${path}/messages`);
  assert.deepEqual(contents(history.body.messages), ["هل فُقدت بطاقتي؟", "لا"]);
  assert.equal((await demo.request("GET", path)).body.unread, 0);
  await device.close();
  await desk.close();
});

test("typing is shown to those who joined", async () => {
  const phone = new Phone(server);
  const device = await phone.connect();
  await device.until("caught_up");
  const desk = await agent();
  const { conversation_id } = await say(device, { to: "demo", content: "hello" });
  for (const session of [device, desk]) {
    session.send("join", { conversation_id });
    await find(session, { op: "joined", conversation_id });
  }
  device.send("typing", { conversation_id, on: true });
  await find(desk, { op: "typing", conversation_id, from: phone.number, on: true });
  device.send("typing", { conversation_id, on: false });
  await find(desk, { op: "typing", conversation_id, from: phone.number, on: false });
  await device.close();
  await desk.close();
});
