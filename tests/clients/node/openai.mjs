// The official `openai` package. `node openai.mjs SCENARIO` prints what its user would see, as JSON.
import OpenAI, { APIError, APIUserAbortError } from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.ROUTEUR_URL, apiKey: process.env.ROUTEUR_KEY, maxRetries: 0 });
const model = process.env.ROUTEUR_MODEL ?? "offline/rules";
const hello = [{ role: "user", content: "Hello, Node!" }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

async function failure(work) {
  try {
    await work();
    return null;
  } catch (error) {
    const { status, code, type, param, message } = error;
    return { class: error.constructor.name, isAPIError: error instanceof APIError, status, code, type, param, message };
  }
}

async function read(stream) {
  const seen = { text: "", chunks: 0, finish: null, usage: null, model: null, calls: [] };
  for await (const chunk of stream) {
    seen.chunks += 1;
    seen.model = chunk.model;
    seen.usage = chunk.usage ?? seen.usage;
    for (const choice of chunk.choices) {
      seen.text += choice.delta.content ?? "";
      seen.finish = choice.finish_reason ?? seen.finish;
      for (const call of choice.delta.tool_calls ?? []) {
        const known = (seen.calls[call.index] ??= { id: call.id, name: call.function.name, arguments: "" });
        known.arguments += call.function.arguments ?? "";
      }
    }
  }
  return seen;
}

const scenarios = {
  async chat() {
    const { data, response } = await client.chat.completions.create({ model, messages: hello }).withResponse();
    const { message, finish_reason } = data.choices[0];
    const headers = Object.fromEntries(["x-model", "x-run-id"].map((name) => [name, response.headers.get(name)]));
    return { text: message.content, finish: finish_reason, usage: data.usage, model: data.model, headers };
  },

  async stream() {
    const asked = { model, messages: hello, stream: true, stream_options: { include_usage: true } };
    return read(await client.chat.completions.create(asked));
  },

  async streamHelper() {
    const stream = client.chat.completions.stream({ model, messages: hello, stream_options: { include_usage: true } });
    let heard = "";
    stream.on("content", (delta) => (heard += delta));
    const final = await stream.finalChatCompletion();
    return { heard, text: final.choices[0].message.content, usage: await stream.totalUsage() };
  },

  async tools() {
    const messages = [{ role: "user", content: "What is the weather in Paris?" }];
    const streamed = await read(await client.chat.completions.create({ model, messages, tools: [weather], stream: true }));
    const first = await client.chat.completions.create({ model, messages, tools: [weather] });
    const said = first.choices[0].message;
    const [call] = said.tool_calls;
    messages.push(said, { role: "tool", tool_call_id: call.id, content: "sunny" });
    const second = await client.chat.completions.create({ model, messages, tools: [weather] });
    return {
      streamed,
      finish: first.choices[0].finish_reason,
      call: call.function,
      answer: second.choices[0].message.content,
    };
  },

  async runTools() {
    const get_weather = async ({ city }) => `rain in ${city}`;
    const runner = client.chat.completions.runTools({
      model,
      messages: [{ role: "user", content: "What is the weather in Oslo?" }],
      tools: [{ ...weather, function: { ...weather.function, function: get_weather, parse: JSON.parse } }],
    });
    return { answer: await runner.finalContent(), messages: runner.messages.map((message) => message.role) };
  },

  async parse() {
    const Person = z.object({ name: z.string(), age: z.number().int() });
    const done = await client.chat.completions.parse({
      model,
      messages: [{ role: "user", content: "My name is Ada, my age is 36." }],
      response_format: zodResponseFormat(Person, "person"),
    });
    return done.choices[0].message.parsed;
  },

  async responses() {
    const plain = await client.responses.create({ model, instructions: "Be brief.", input: "Hello, Node!" });
    let streamed = "";
    const kinds = [];
    for await (const event of client.responses.stream({ model, input: "Hello, Node!" })) {
      if (event.type === "response.output_text.delta") streamed += event.delta;
      if (kinds.at(-1) !== event.type) kinds.push(event.type);
    }
    const tools = [{ type: "function", strict: false, ...weather.function }];
    const first = await client.responses.create({ model, input: "What is the weather in Rome?", tools });
    const call = first.output.find((item) => item.type === "function_call");
    const second = await client.responses.create({
      model,
      previous_response_id: first.id,
      input: [{ type: "function_call_output", call_id: call.call_id, output: "hot" }],
      tools,
    });
    return {
      text: plain.output_text,
      usage: plain.usage,
      streamed,
      kinds,
      call: { name: call.name, arguments: call.arguments },
      answer: second.output_text,
      error: await failure(() => client.responses.create({ model: "offline/nothing", input: "x" })),
    };
  },

  async errors() {
    const stranger = client.withOptions({ apiKey: "rk_nobody" });
    const ask = (more) => client.chat.completions.create({ model, messages: hello, ...more });
    return {
      key: await failure(() => stranger.chat.completions.create({ model, messages: hello })),
      model: await failure(() => ask({ model: "offline/nothing" })),
      retrieve: await failure(() => client.models.retrieve("agent/nobody")),
      value: await failure(() => ask({ temperature: 3 })),
      unsupported: await failure(() => ask({ logprobs: true })),
    };
  },

  async upstreamErrors() {
    const ask = () => client.chat.completions.create({ model, messages: hello });
    return { busy: await failure(ask), refused: await failure(ask) };
  },

  async models() {
    const ids = [];
    for await (const one of client.models.list()) ids.push(one.id);
    return { ids, model: await client.models.retrieve("offline/rules"), agent: await client.models.retrieve("agent/react") };
  },

  async embeddings() {
    const asked = { model: "offline/hash", input: ["a red apple", "a red apple", "winter"] };
    const encoded = await client.embeddings.create(asked);
    const plain = await client.embeddings.create({ ...asked, encoding_format: "float" });
    const small = await client.embeddings.create({ model: "offline/hash", input: "one", dimensions: 8 });
    const first = encoded.data[0].embedding;
    return {
      sizes: encoded.data.map((one) => one.embedding.length),
      alike: first.every((number, place) => number === encoded.data[1].embedding[place]),
      furthest: Math.max(...first.map((number, place) => Math.abs(number - plain.data[0].embedding[place]))),
      small: small.data[0].embedding.length,
      usage: encoded.usage,
    };
  },

  async brokenStream() {
    let text = "";
    const error = await failure(async () => {
      for await (const chunk of await client.chat.completions.create({ model, messages: hello, stream: true }))
        text += chunk.choices[0]?.delta.content ?? "";
    });
    return { text, error };
  },

  async abort() {
    const aborting = new AbortController();
    const stream = await client.chat.completions.create(
      { model, messages: hello, stream: true },
      { signal: aborting.signal },
    );
    let text = "";
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      if (text) aborting.abort();
    }
    const early = new AbortController();
    early.abort();
    const refused = await client.chat.completions
      .create({ model, messages: hello }, { signal: early.signal })
      .catch((error) => error instanceof APIUserAbortError);
    return { text, refused };
  },
};

console.log(JSON.stringify(await scenarios[process.argv[2]]()));
