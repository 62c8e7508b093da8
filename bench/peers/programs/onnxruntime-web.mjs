// ONNX Runtime compiled to WebAssembly with SIMD and threads, in Node.

import * as ort from 'onnxruntime-web'
import { installedVersion, serve } from '../serve.mjs'
import { onnxPrepare } from './onnxruntime.mjs'

await serve({ 'onnxruntime-web': installedVersion('onnxruntime-web'), node: process.versions.node }, (request) => {
  ort.env.wasm.numThreads = request.threads
  return onnxPrepare(ort, request, { executionProviders: ['wasm'] })
})
