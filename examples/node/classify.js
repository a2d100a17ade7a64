#!/usr/bin/env node
// Classifies videos on a Kinetoscope server. One line of JSON a video: {"video", "labels": [{"label", "score"}]}.
//
//     npm install
//     ./classify.js --server 127.0.0.1:50051 VIDEO...
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { parseArgs } = require("node:util");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const { values, positionals: videos } = parseArgs({
  allowPositionals: true,
  options: {
    server: { type: "string", default: "127.0.0.1:50051" },
    proto: { type: "string", default: path.join(__dirname, "../../proto") },
    "top-k": { type: "string", default: "5" },
    timeout: { type: "string", default: "60" },
  },
});

const definition = loader.loadSync("kinetoscope/v1/kinetoscope.proto", { includeDirs: [values.proto], keepCase: true });
const { VideoClassificationService } = grpc.loadPackageDefinition(definition).kinetoscope.v1;
// Videos exceed the client's 4 MiB; the server has its own limit.
const client = new VideoClassificationService(values.server, grpc.credentials.createInsecure(), {
  "grpc.max_send_message_length": -1,
});

function classify(video) {
  const request = { video: { content: fs.readFileSync(video) }, options: { top_k: Number(values["top-k"]) } };
  const deadline = Date.now() + 1000 * Number(values.timeout);
  return new Promise((resolve, reject) => {
    client.ClassifyVideo(request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

async function main() {
  for (const video of videos) {
    const { classification } = await classify(video);
    const labels = classification.labels.map(({ label, score }) => ({ label, score }));
    console.log(JSON.stringify({ video, labels }));
  }
}

main()
  .catch((error) => {
    console.error(`${grpc.status[error.code] ?? "error"}: ${error.details ?? error.message}`);
    process.exitCode = 1;
  })
  .finally(() => client.close());
