// Chat on the try-it page in a real Chromium: an agent and two phones.
//
// SCREENSHOTS names a directory for pictures of the page.

import assert from "node:assert/strict";
import { EventEmitter, once } from "node:events";
import { after, before, beforeEach, describe, test } from "node:test";

import { Server } from "../clients/node/server.mjs";
import { Desk } from "./desk.mjs";

describe("chat on the console", { concurrency: false, timeout: 120_000 }, () => {
  let server, desk, page;

  before(async () => {
    server = await Server.start();
    desk = await Desk.open(server);
    page = desk.page;
  });

  after(async () => {
    await desk?.close();
    await server?.stop();
  });

  beforeEach(async () => {
    for (const name of ["Phone A", "Phone B", "Agent"]) await state(name, "Online");
  });

  const card = (name) => page.getByRole("region", { name, exact: true });
  const state = (name, text) => card(name).locator(".state", { hasText: text }).waitFor();
  const contents = (name) => card(name).locator(".content").allTextContents();
  const message = (name, text) => card(name).locator(".message", { hasText: text });
  const line = (name) => card(name).locator(".composer input");
  const ticks = (name, text, step) => message(name, text).getByRole("img", { name: step, exact: true }).waitFor();
  const talkTo = (name) => card("Agent").getByText(name).click();

  async function write(name, text) {
    await line(name).fill(text);
    await card(name).locator(".composer").getByRole("button", { name: "Send" }).click();
    await message(name, text).waitFor();
  }

  test("a phone asks, the agent answers, and ticks go forward on both", async () => {
    await write("Phone A", "هل فُقدت بطاقتي؟");
    await message("Agent", "هل فُقدت بطاقتي؟").waitFor();
    await ticks("Phone A", "هل فُقدت بطاقتي؟", "read"); // the agent looks at it
    await write("Agent", "It is not.");
    await message("Phone A", "It is not.").waitFor();
    await ticks("Agent", "It is not.", "delivered");
    await message("Phone A", "It is not.").click();
    await ticks("Agent", "It is not.", "read");
    assert.deepEqual(await contents("Agent"), ["هل فُقدت بطاقتي؟", "It is not."]);
    assert.deepEqual(await contents("Phone A"), ["هل فُقدت بطاقتي؟", "It is not."]);
    assert.deepEqual(await contents("Phone B"), []);
  });

  test("typing shows at the other side, and goes", async () => {
    await line("Phone A").pressSequentially("I th");
    await card("Agent").locator(".typing", { hasText: "+966500000001 is typing" }).waitFor();
    await line("Phone A").fill("");
    await line("Agent").focus(); // which stops it
    await card("Agent").locator(".typing", { hasText: /^$/ }).waitFor({ state: "attached" });
    await line("Agent").pressSequentially("Wait");
    await card("Phone A").locator(".typing", { hasText: "demo is typing" }).waitFor();
    await write("Agent", "Wait a moment");
    await message("Phone A", "Wait a moment").waitFor();
    await card("Phone A").locator(".typing", { hasText: /^$/ }).waitFor({ state: "attached" });
  });

  test("what another phone says waits unread until the agent looks at it", async () => {
    await write("Phone B", "Hello from B");
    await card("Agent").locator(".badge", { hasText: "1" }).waitFor();
    await ticks("Phone B", "Hello from B", "delivered");
    assert.ok(!(await contents("Agent")).includes("Hello from B"));
    await talkTo("Phone B");
    await message("Agent", "Hello from B").waitFor();
    await ticks("Phone B", "Hello from B", "read");
    await write("Agent", "Hello B");
    await message("Phone B", "Hello B").waitFor();
    assert.ok(!(await contents("Phone A")).includes("Hello B"));
    await talkTo("Phone A");
  });

  test("a phone that was away catches up, and sends what it wrote meanwhile", async () => {
    await card("Phone A").getByLabel("Connected", { exact: true }).uncheck();
    await state("Phone A", "Offline");
    await write("Agent", "Are you there?");
    await ticks("Agent", "Are you there?", "sent");
    await write("Phone A", "written on a train");
    await ticks("Phone A", "written on a train", "sending");
    await card("Phone A").getByLabel("Connected", { exact: true }).check();
    await message("Phone A", "Are you there?").waitFor();
    await ticks("Agent", "Are you there?", "delivered");
    await message("Agent", "written on a train").waitFor();
    await ticks("Phone A", "written on a train", "read");
  });

  test("over a reload both have what was said", async () => {
    await page.reload();
    for (const name of ["Phone A", "Agent"]) await message(name, "written on a train").waitFor();
    assert.equal(await message("Agent", "written on a train").count(), 1);
    await write("Phone A", "after the reload");
    await message("Agent", "after the reload").waitFor();
  });

  /** Holds back `sent`, and own messages if they are to be, until `giveFree`; `statuses` emits each status that goes on. */
  async function hold({ ownMessages }) {
    const [held, statuses] = [[], new EventEmitter()];
    await page.routeWebSocket(/\/v1\/ws/, (socket) => {
      let hasSent = false;
      const server = socket.connectToServer();
      socket.onMessage((text) => {
        hasSent ||= JSON.parse(text).op === "send";
        server.send(text);
      });
      server.onMessage((text) => {
        const { op, cursor, status } = JSON.parse(text);
        const isOwn = ownMessages && hasSent && op === "message" && !cursor;
        if (op === "sent" || isOwn) return void held.push(() => socket.send(text));
        socket.send(text);
        if (op === "status") statuses.emit(status);
      });
    });
    await page.reload();
    for (const name of ["Phone A", "Agent"]) await state(name, "Online");
    return { statuses, giveFree: () => held.splice(0).forEach((send) => send()) };
  }

  for (const { what, first, ownMessages } of [
    { what: "a message that comes before its `sent` is shown once", first: "hears itself", ownMessages: false },
    { what: "what is read before its `sent` comes is read", first: "is read", ownMessages: true },
  ]) {
    test(what, async () => {
      const { statuses, giveFree } = await hold({ ownMessages });
      for (const [from, to] of [["Phone A", "Agent"], ["Agent", "Phone A"]]) {
        const text = `${from} ${first} first`;
        const isRead = once(statuses, "read");
        await write(from, text);
        await message(to, text).click();
        await isRead;
        await ticks(from, text, "sending");
        assert.equal(await message(from, text).count(), 1);
        giveFree();
        await ticks(from, text, "read");
        assert.equal(await message(from, text).count(), 1);
      }
    });
  }

  test("it fits narrow and wide windows, in light and dark, and logs no error", async () => {
    await desk.fits("chat");
    assert.deepEqual(desk.complaints, []);
  });
});
