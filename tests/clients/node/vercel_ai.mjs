// Vercel's AI SDK over `@ai-sdk/openai-compatible`. `node vercel_ai.mjs SCENARIO` prints what its user would see, as JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const routeur = createOpenAICompatible({
  name: "routeur",
  baseURL: process.env.ROUTEUR_URL,
  apiKey: process.env.ROUTEUR_KEY,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = routeur(process.env.ROUTEUR_MODEL ?? "offline/rules");
const maxRetries = 0;
const weather = tool({
  description: "The weather in a city",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `snow in ${city}`,
});

function told(error) {
  return { isAPICallError: APICallError.isInstance(error), status: error.statusCode, message: error.message ?? String(error) };
}

async function failure(work) {
  try {
    await work();
    return null;
  } catch (error) {
    return told(error);
  }
}

const scenarios = {
  async generate() {
    const { text, usage, finishReason, response } = await generateText({ model, prompt: "Hello, Vercel!", maxRetries });
    return { text, usage, finishReason, model: response.modelId };
  },

  async stream() {
    const result = streamText({ model, system: "Be brief.", prompt: "Hello, Vercel!", maxRetries });
    const pieces = [];
    for await (const piece of result.textStream) pieces.push(piece);
    return { pieces: pieces.length, text: pieces.join(""), usage: await result.usage, finishReason: await result.finishReason };
  },

  async tools() {
    const asked = { model, prompt: "What is the weather in Lima?", tools: { get_weather: weather }, maxRetries };
    const whole = await generateText({ ...asked, stopWhen: stepCountIs(4) });
    const streamed = streamText({ ...asked, stopWhen: stepCountIs(4) });
    const kinds = [];
    for await (const part of streamed.fullStream) if (kinds.at(-1) !== part.type) kinds.push(part.type);
    const forced = await generateText({ ...asked, prompt: "Hello!", toolChoice: "required" });
    return {
      steps: whole.steps.length,
      calls: whole.steps[0].toolCalls.map(({ toolName, input }) => ({ toolName, input })),
      text: whole.text,
      streamed: { kinds, text: await streamed.text },
      forced: forced.toolCalls.map((call) => call.toolName),
    };
  },

  async object() {
    const asked = {
      model,
      output: Output.object({ schema: z.object({ name: z.string(), age: z.number().int() }) }),
      prompt: "The name is Grace, the age is 85.",
      maxRetries,
    };
    const streamed = streamText(asked);
    let last = null;
    for await (const partial of streamed.partialOutputStream) last = partial;
    return { whole: (await generateText(asked)).output, streamed: last };
  },

  async embeddings() {
    const { embeddings, usage } = await embedMany({
      model: routeur.embeddingModel("offline/hash"),
      values: ["sunny day", "rainy day"],
    });
    return { sizes: embeddings.map((one) => one.length), usage };
  },

  async errors() {
    const ask = (id, more) => failure(() => generateText({ model: routeur(id), prompt: "x", maxRetries, ...more }));
    return { model: await ask("offline/nothing"), value: await ask("offline/rules", { temperature: 3 }) };
  },

  async brokenStream() {
    let text = "";
    let error = null;
    const result = streamText({ model, prompt: "Hello!", maxRetries, onError: () => {} });
    for await (const part of result.fullStream) {
      if (part.type === "text-delta") text += part.text;
      if (part.type === "error") error = told(part.error);
    }
    return { text, error };
  },

  async abort() {
    const aborting = new AbortController();
    const result = streamText({ model, prompt: "Hello!", maxRetries, abortSignal: aborting.signal });
    const kinds = new Set();
    for await (const part of result.fullStream) {
      kinds.add(part.type);
      if (part.type === "text-delta") aborting.abort();
    }
    return { kinds: [...kinds] };
  },
};

console.log(JSON.stringify(await scenarios[process.argv[2]]()));
