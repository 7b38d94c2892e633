// Stream with the official JavaScript client: node examples/openai_stream.mjs MODEL
import { execFileSync } from "node:child_process";
import OpenAI from "openai";

// The mesh that commands use: of this machine, of the login, or LLAMESH_URL.
const mesh = JSON.parse(execFileSync("llamesh", ["env", "--output", "json"]));
const client = new OpenAI({ baseURL: mesh.OPENAI_BASE_URL, apiKey: mesh.OPENAI_API_KEY });
const stream = await client.chat.completions.create({
  model: process.argv[2],
  messages: [{ role: "user", content: "Hello! What is the capital of France?" }],
  temperature: 0,
  max_tokens: 64,
  stream: true,
});
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta?.content ?? "");
process.stdout.write("\n");
