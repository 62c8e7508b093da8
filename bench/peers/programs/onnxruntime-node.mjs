// ONNX Runtime's CPU library, through its Node binding: all graph optimisations, batch norm folded and layouts chosen by it.

import * as ort from 'onnxruntime-node'
import { installedVersion, serve } from '../serve.mjs'
import { onnxPrepare } from './onnxruntime.mjs'

await serve({ 'onnxruntime-node': installedVersion('onnxruntime-node'), node: process.versions.node }, (request) =>
  onnxPrepare(ort, request, { executionProviders: ['cpu'], intraOpNumThreads: request.threads, interOpNumThreads: 1 }),
)
