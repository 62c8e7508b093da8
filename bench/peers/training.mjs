// What a training step is, for every peer: cross entropy of softmax averaged over the batch, gradients of all trainable parameters,
// SGD with momentum, running statistics. Labels are (37 · i) mod classes.

/** A small rate, so that three steps stay comparable. */
export const SGD = { rate: 0.001, momentum: 0.9 }
/** Steps whose losses are compared. */
export const STEPS = 3
/** Parameters whose change by the first step is compared: their gradients have come through the whole network, or through its end alone. */
export const TRACKED = ['block1.conv1.filter', 'predictions.bias']
