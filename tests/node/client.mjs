// One spoken turn with the `ws` package, in the shape of the page that LiteLLM has for xAI's realtime models.
// Usage: node client.mjs URL KEY. Prints one line of JSON: what the client saw.
import { createHash } from "node:crypto";
import WebSocket from "ws";

const [url, key] = process.argv.slice(2);
const ws = new WebSocket(url, { headers: { Authorization: `Bearer ${key}`, "OpenAI-Beta": "realtime=v1" } });
const seen = { types: [], audioBytes: 0, sha256: null, status: null, error: null, httpStatus: null, closeCode: null };
const sound = createHash("sha256");
let asked = false;

ws.on("message", (data, isBinary) => {
  if (isBinary) throw new Error("a binary message came");
  const event = JSON.parse(data.toString());
  seen.types.push(event.type);
  if (!asked && (event.type === "session.created" || event.type === "conversation.created")) {
    asked = true;
    ws.send(
      JSON.stringify({
        type: "conversation.item.create",
        item: { type: "message", role: "user", content: [{ type: "input_text", text: "Say something." }] },
      }),
    );
    ws.send(JSON.stringify({ type: "response.create" }));
  } else if (event.type === "response.output_audio.delta" || event.type === "response.audio.delta") {
    const piece = Buffer.from(event.delta, "base64");
    seen.audioBytes += piece.length;
    sound.update(piece);
  } else if (event.type === "error") {
    seen.error = event.error;
    ws.close();
  } else if (event.type === "response.done") {
    seen.status = event.response.status;
    ws.close(1000, "done");
  }
});
ws.on("unexpected-response", (request, response) => {
  seen.httpStatus = response.statusCode;
  const parts = [];
  response.on("data", (part) => parts.push(part));
  response.on("end", () => {
    seen.error = JSON.parse(Buffer.concat(parts).toString()).error;
    report();
  });
});
ws.on("error", (error) => {
  seen.error ??= { message: error.message };
  report();
});
ws.on("close", (code) => {
  seen.closeCode = code;
  report();
});

let reported = false;
function report() {
  if (reported) return;
  reported = true;
  seen.sha256 = sound.digest("hex");
  process.stdout.write(JSON.stringify(seen) + "\n", () => process.exit(0));
}
setTimeout(() => {
  seen.error ??= { message: "no end within 20 s" };
  report();
}, 20_000);
