// Has @google/genai do what test_node.py says.
import { GoogleGenAI } from "@google/genai";
import { read, serve } from "./serving.mjs";

const client = ({ url, token, ...more }) =>
  new GoogleGenAI({ apiKey: token, httpOptions: { baseUrl: url, ...more } });

const asked = ({ model = "flash", text = "hello", image = 0, tools }, abortSignal) => ({
  model,
  contents: [text, ...(image ? [{ inlineData: { mimeType: "image/png", data: "eHh4".repeat(image) } }] : [])],
  config: { abortSignal, tools },
});

const commands = {
  async generate({ options, ...given }, pieces, signal) {
    const answer = await client(options).models.generateContent(asked(given, signal));
    return {
      text: answer.text ?? null,
      calls: answer.functionCalls ?? [],
      total: answer.usageMetadata?.totalTokenCount,
      attempts: answer.sdkHttpResponse.headers["x-llm-router-attempts"],
    };
  },

  async stream({ options, reading = {}, ...given }, pieces, signal) {
    const stream = await client(options).models.generateContentStream(asked(given, signal));
    const found = [];
    try {
      await read(stream, reading, signal, found);
    } finally {
      pieces.push(...found.map((piece) => piece.text ?? ""));
    }
  },

  async count({ options }) {
    const { totalTokens } = await client(options).models.countTokens({ model: "flash", contents: "hello" });
    return totalTokens;
  },

  async embed({ options, texts }) {
    const config = { model: "text-embedding-9", contents: texts };
    return (await client(options).models.embedContent(config)).embeddings.map((each) => each.values.length);
  },

  async models({ options }) {
    const names = [];
    for await (const model of await client(options).models.list()) names.push(model.name);
    return names;
  },

  async chat({ options, texts }) {
    const chat = client(options).chats.create({ model: "flash" });
    const answers = [];
    for (const message of texts) answers.push((await chat.sendMessage({ message })).text);
    return answers;
  },

  async file({ options, text }) {
    const { files, models } = client(options);
    const file = await files.upload({ file: new Blob([text]), config: { mimeType: "text/plain" } });
    const part = { fileData: { fileUri: file.uri, mimeType: file.mimeType } };
    const answer = await models.generateContent({ model: "flash", contents: ["read", part] });
    await files.delete({ name: file.name });
    return { name: file.name, text: answer.text };
  },

  async cache({ options, text }) {
    const { caches, models } = client(options);
    const cache = await caches.create({ model: "flash", config: { contents: text } });
    const config = { cachedContent: cache.name };
    const answer = await models.generateContent({ model: "flash", contents: "hello", config });
    await caches.delete({ name: cache.name });
    return answer.text;
  },

  async interact({ options, texts }) {
    const { interactions } = client(options);
    const answers = [];
    let previous;
    for (const input of texts) {
      const more = previous ? { previous_interaction_id: previous } : {};
      const found = await interactions.create({ model: "flash", input, ...more });
      previous = found.id;
      answers.push(found.status);
    }
    return answers;
  },

  // What no method of the SDK sends.
  async raw({ options, verb = "POST", path, body = "{}" }) {
    await client(options).apiClient.request({ path, body, httpMethod: verb });
  },

  async live({ options }) {
    await new Promise((resolve, reject) => {
      const callbacks = { onmessage() {}, onopen: resolve, onerror: (event) => reject(new Error(event.message)) };
      client(options).live.connect({ model: "flash", callbacks }).catch(reject);
    });
  },
};

serve(commands);
