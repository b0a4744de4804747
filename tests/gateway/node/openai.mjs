// Has openai do what test_node.py says.
import OpenAI from "openai";
import { read, serve } from "./serving.mjs";

const client = ({ url, token, ...more }) =>
  new OpenAI({ apiKey: token, baseURL: `${url}/v1`, maxRetries: 0, ...more });

const asked = ({ model = "flash", text = "hello", image = 0, tools }) => ({
  model,
  tools,
  messages: [
    {
      role: "user",
      content: image
        ? [
            { type: "text", text },
            { type: "image_url", image_url: { url: `data:image/png;base64,${"eHh4".repeat(image)}` } },
          ]
        : text,
    },
  ],
});

const commands = {
  async generate({ options, ...given }, pieces, signal) {
    const create = client(options).chat.completions.create(asked(given), { signal });
    const { data, response } = await create.withResponse();
    const { content, tool_calls: calls = [] } = data.choices[0].message;
    return {
      text: content ?? null,
      calls: calls.map((each) => ({ name: each.function.name, args: JSON.parse(each.function.arguments) })),
      total: data.usage.total_tokens,
      attempts: response.headers.get("x-llm-router-attempts"),
    };
  },

  async stream({ options, reading = {}, ...given }, pieces, signal) {
    const { completions } = client(options).chat;
    const stream = await completions.create({ ...asked(given), stream: true }, { signal });
    const found = [];
    try {
      await read(stream, reading, signal, found);
    } finally {
      pieces.push(...found.map((piece) => piece.choices[0]?.delta.content ?? ""));
    }
  },

  async embed({ options, texts }) {
    const { data } = await client(options).embeddings.create({ model: "text-embedding-9", input: texts });
    return data.map((each) => each.embedding.length);
  },

  async models({ options }) {
    const names = [];
    for await (const model of client(options).models.list()) names.push(model.id);
    return names;
  },

  // What no method of the SDK sends.
  async raw({ options, verb = "POST", path, body = "{}" }) {
    const headers = { "content-type": "application/json" };
    const request = { method: verb.toLowerCase(), path, headers };
    await client(options).request(verb === "GET" ? request : { ...request, body: new TextEncoder().encode(body) });
  },
};

serve(commands);
