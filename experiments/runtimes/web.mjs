// Run an ONNX file in ONNX Runtime Web (WebAssembly) on one thread: node web.mjs FILE.onnx
//
// Reads images from the standard input: the shape (B, C, H, W) as int32, then the values as float32. For each, writes to
// the standard output: the number of bytes that follow as uint32, then the milliseconds of processor time and the values
// of the first output, as float32. The package onnxruntime-web is looked for in the current folder and those above it.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const HEADER = 16;
const ort = createRequire(`${process.cwd()}/`)('onnxruntime-web');
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(process.argv[2])), {
  executionProviders: ['wasm'],
});

async function run(shape, values) {
  const before = process.cpuUsage();
  const outputs = await session.run({ [session.inputNames[0]]: new ort.Tensor('float32', values, shape) });
  const { user, system } = process.cpuUsage(before);
  const answer = Float32Array.of((user + system) / 1000, ...outputs[session.outputNames[0]].data);
  process.stdout.write(Buffer.from(Uint32Array.of(answer.byteLength).buffer));
  process.stdout.write(Buffer.from(answer.buffer));
}

let given = Buffer.alloc(0);
for await (const part of process.stdin) {
  given = Buffer.concat([given, part]);
  while (given.length >= HEADER) {
    const shape = Array.from({ length: 4 }, (_, axis) => given.readInt32LE(4 * axis));
    const end = HEADER + 4 * shape.reduce((product, side) => product * side);
    if (given.length < end) break;
    const bytes = Uint8Array.from(given.subarray(HEADER, end)); // a copy, which starts at a multiple of 4
    await run(shape, new Float32Array(bytes.buffer));
    given = given.subarray(end);
  }
}
