// The console and the API's pages behind a proxy that serves them under a path, in a real Chromium.

import assert from "node:assert/strict";
import { createServer, request } from "node:http";
import { connect } from "node:net";
import { after, before, describe, test } from "node:test";

import { Desk, WAIT_MS } from "./desk.mjs";
import { Server } from "../clients/node/server.mjs";

const PREFIX = "/gate/eshaar";

/** A proxy that takes the prefix off and announces it. Anything else is not there. */
function proxy(port) {
  const inside = (url) => (url === PREFIX || url.startsWith(`${PREFIX}/`) ? url.slice(PREFIX.length) || "/" : null);
  const server = createServer((asked, answer) => {
    const path = inside(asked.url);
    if (path === null) return answer.writeHead(404).end("not of this service");
    const headers = { ...asked.headers, "x-forwarded-prefix": PREFIX };
    const passed = request({ host: "127.0.0.1", port, method: asked.method, path, headers }, (got) => {
      answer.writeHead(got.statusCode, got.rawHeaders);
      got.pipe(answer);
    });
    asked.pipe(passed);
  });
  server.on("upgrade", (asked, socket) => {
    const path = inside(asked.url);
    if (path === null) return socket.destroy();
    const passed = connect(port, "127.0.0.1", () => {
      const lines = [`${asked.method} ${path} HTTP/1.1`];
      for (let at = 0; at < asked.rawHeaders.length; at += 2) lines.push(`${asked.rawHeaders[at]}: ${asked.rawHeaders[at + 1]}`);
      passed.write(`${lines.join("\r\n")}\r\n\r\n`);
      passed.pipe(socket).pipe(passed);
    });
    for (const end of [passed, socket]) end.on("error", () => (passed.destroy(), socket.destroy()));
  });
  return new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(server)));
}

describe("behind a prefix", { concurrency: false, timeout: 60_000 }, () => {
  let server, front, base, desk;

  before(async () => {
    server = await Server.start('http.trusted_proxies=["127.0.0.1"]');
    front = await proxy(server.port);
    base = `http://127.0.0.1:${front.address().port}${PREFIX}`;
    desk = await Desk.open({ dataDir: server.dataDir, url: base });
  });

  after(async () => {
    await desk?.close();
    front?.closeAllConnections();
    front?.close();
    await server?.stop();
  });

  test("the console opens, and its phones connect", async () => {
    await desk.page.waitForURL(`${base}/console`);
    await desk.page.locator('.state[data-state="online"]').first().waitFor({ timeout: WAIT_MS });
  });

  test("every page of the console is reached by its links", async () => {
    for (const name of ["Conversations", "Dead letters", "Audit log", "Try it"]) {
      await desk.page.getByRole("link", { name, exact: true }).first().click();
      await desk.page.waitForLoadState();
      const url = desk.page.url();
      assert.ok(url.startsWith(`${base}/console`), url);
      assert.equal(await desk.page.locator("link[rel=stylesheet]").count(), 1);
    }
  });

  test("the API's pages show its operations", async () => {
    await desk.page.goto(`${base}/docs`);
    await desk.page.getByText("/v1/messages/{id}/cancel").first().waitFor({ timeout: WAIT_MS });
    const document = await (await fetch(`${base}/openapi.json`)).json();
    assert.deepEqual(document.servers, [{ url: PREFIX }]);
  });

  test("nothing was asked for outside of it", () => assert.deepEqual(desk.complaints, []));
});
