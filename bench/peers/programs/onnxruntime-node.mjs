// ONNX Runtime's CPU library, through its Node binding: all graph optimisations, batch norm folded and layouts chosen by it.

import { createRequire } from 'node:module'
import * as ort from 'onnxruntime-node'
import { serve } from '../serve.mjs'
import { onnxPrepare } from './onnxruntime.mjs'

const { version } = createRequire(import.meta.url)('onnxruntime-node/package.json')
await serve({ 'onnxruntime-node': version, node: process.versions.node }, (request) =>
  onnxPrepare(ort, request, { executionProviders: ['cpu'], intraOpNumThreads: request.threads, interOpNumThreads: 1 }),
)
