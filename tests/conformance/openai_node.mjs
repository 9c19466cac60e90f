// Makes the calls with OpenAI's npm SDK: `node openai_node.mjs URL CALLS FOLDER`, results as JSON on stdout.
// Owns what a result is on this SDK; FOLDER holds the node_modules.

import diagnostics from "node:diagnostics_channel";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, calls, folder] = process.argv.slice(2);
const { OpenAI, toFile } = createRequire(`${folder}/`)("openai");

let connections = 0;
diagnostics.subscribe("undici:client:connected", () => connections++);

async function ask(client, call) {
  const result = {};
  try {
    const { data, response } = await started(client, call);
    Object.assign(result, { status: response.status, headers: Object.fromEntries(response.headers) });
    if (typeof data?.toReadableStream !== "function") {
      result.returned = typeof data?.getPaginatedItems === "function" ? data.getPaginatedItems() : data;
      return result;
    }
    result.chunks = [];
    for await (const chunk of data) {
      result.chunks.push(chunk);
      if (result.chunks.length === call.options.stop_after) break;
    }
  } catch (error) {
    Object.assign(result, raised(error));
  }
  return result;
}

async function started(client, call) {
  const path = call.method.split(".");
  const name = path.pop();
  const resource = path.reduce((object, key) => object[key], client);
  const given = [...(call.options.positional ?? [])];
  const body = {};
  for (const [key, value] of Object.entries(call.arguments)) {
    body[key] = value?.$file ? await toFile(Buffer.from(value.$file[1]), value.$file[0]) : value;
  }
  if (Object.keys(body).length) given.push(body);
  if (call.options.headers) given.push({ headers: call.options.headers });
  return resource[name](...given).withResponse();
}

function raised(error) {
  const { status, code, param, type, message } = error;
  const headers = error.headers && Object.fromEntries(error.headers);
  return { raised: error.constructor.name, message, status, code, param, type, body: error.error, headers };
}

async function made(call) {
  const client = new OpenAI({
    baseURL: url,
    apiKey: call.options.key ?? call.key,
    timeout: 1000 * (call.options.timeout ?? 120),
    maxRetries: call.options.retries ?? 0,
  });
  const { times, at_once: atOnce } = call.options;
  if (atOnce) return Promise.all(Array.from({ length: atOnce }, () => ask(client, call)));
  if (!times) return ask(client, call);
  const before = connections;
  const results = [];
  for (let turn = 0; turn < times; turn++) results.push(await ask(client, call));
  // At least once: the SDK may ask again before its pool has the connection back, and then opens a second one.
  return { results, reused: connections - before < times };
}

const results = {};
for (const call of JSON.parse(readFileSync(calls, "utf8"))) results[call.name] = await made(call);
process.stdout.write(JSON.stringify(results), () => process.exit(0));
