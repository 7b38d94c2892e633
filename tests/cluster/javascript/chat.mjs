// What the official JavaScript client sees: argv[2] is the base URL, argv[3] the model. Prints one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "not-needed", maxRetries: 0 });
const model = process.argv[3];
const messages = [{ role: "user", content: "Hello!" }];

const answer = await client.chat.completions.create({ model, messages });
const completion = await client.completions.create({ model, prompt: "Hi" });
const words = [];
let usage = null;
const stream = await client.chat.completions.create({
  model, messages, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  if (chunk.choices.length) words.push(chunk.choices[0].delta.content ?? "");
  usage = chunk.usage ?? usage;
}

async function refusal(call) {
  try {
    await call();
    return "no error";
  } catch (error) {
    return `${error.constructor.name} ${error.status}`;
  }
}

const signed = new OpenAI({ baseURL: process.argv[2], apiKey: "a.b.c", maxRetries: 0 });
console.log(JSON.stringify({
  chat: answer.choices[0].message.content.trim(),
  usage: answer.usage.completion_tokens,
  completion: completion.choices[0].text.trim(),
  stream: words.join("").trim(),
  chunks: words.filter(Boolean).length,
  stream_usage: usage?.completion_tokens,
  unauthenticated: await refusal(() => signed.chat.completions.create({ model, messages })),
  forbidden_field: await refusal(() => client.chat.completions.create({ model, messages, id_slot: 1 })),
}));
