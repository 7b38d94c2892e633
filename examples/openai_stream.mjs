// Stream with the official JavaScript client: node examples/openai_stream.mjs MODEL
import OpenAI from "openai";

const address = process.env.LLAMESH_INFERENCE_URL ?? "http://localhost:8080";
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "not-needed" });
const stream = await client.chat.completions.create({
  model: process.argv[2],
  messages: [{ role: "user", content: "Hello! What is the capital of France?" }],
  temperature: 0,
  max_tokens: 64,
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
process.stdout.write("\n");
