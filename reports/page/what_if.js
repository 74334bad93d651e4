// What a format would do to recorded values at another loss scale: the brackets of precscope/what_if.py, by tensor.
// A limit at the edge of an octave gives an exact count, one inside an octave "at least, at most".

const histograms = decoded(run.histograms, Float32Array);
const BINS = run.bins;

// sums[t * (BINS + 1) + i]: how many values of tensor t lie in the bins before i.
const sums = new Float64Array(tensors.layer.length * (BINS + 1));
tensors.layer.forEach((_, tensor) => {
  const start = tensor * (BINS + 1);
  for (let bin = 0; bin < BINS; bin++) sums[start + bin + 1] = sums[start + bin] + histograms[tensor * BINS + bin];
});

// The loss scale wanted by the one recorded; 1 for what no loss scale moves.
function scaleRatio(tensor) {
  if (choice.scaleExponent === null || !isGradient(tensor)) return 1;
  return 2 ** choice.scaleExponent / (run.lossScale ?? 1);
}

// How many values lie below a limit: [at least, at most].
function below(tensor, limit, inclusive) {
  const start = tensor * (BINS + 1);
  const total = sums[start + BINS];
  const inside = (value) => value !== null && (inclusive ? value <= limit : value < limit);
  const beyond = (value) => value !== null && (inclusive ? value > limit : value >= limit);
  if (inside(tensors.absmax[tensor])) return [total, total];
  if (beyond(tensors.smallest[tensor])) return [0, 0];
  // Bin i begins at 2 ** (exponentMin + i); the first holds all that is smaller, the last all that is larger.
  const position = Math.log2(limit) - run.exponentMin;
  const edge = Math.floor(position);
  const surely = edge >= BINS ? BINS - 1 : Math.max(edge, 0);
  const perhaps = edge >= BINS ? BINS : Math.max(position === edge && !inclusive ? edge : edge + 1, 1);
  return [sums[start + surely], sums[start + Math.min(perhaps, BINS)]];
}

const difference = (whole, part) => [Math.max(whole[0] - part[1], 0), Math.max(whole[1] - part[0], 0)];

// Shares of the non-zero finite values, each [at least, at most]; null where there is none.
function predict(tensor) {
  const total = sums[(tensor + 1) * (BINS + 1) - 1];
  if (!total) return null;
  const format = run.formats[choice.format];
  const ratio = scaleRatio(tensor);
  const flushed = below(tensor, format.flushLimit / ratio, true);
  const small = below(tensor, format.smallestNormal / ratio, false);
  const fitting = below(tensor, format.overflowLimit / ratio, !format.hasInfinity);
  const share = (bracket) => bracket.map((count) => count / total);
  return {
    flushed: share(flushed),
    subnormal: share(difference(small, flushed)),
    overflow: share([total - fitting[1], total - fitting[0]]),
  };
}

function bracket(shares) {
  if (!shares) return ABSENT;
  const [least, most] = shares.map(percent);
  return least === most ? least : `${least} to ${most}`;
}

// The worst of a layer's outputs and gradients, by what is the most possible.
function worst(layer, field) {
  let found = null;
  for (const tensor of layer.tensors) {
    if (tensors.kind[tensor] !== "activation" && tensors.kind[tensor] !== "gradient") continue;
    const shares = predict(tensor)?.[field];
    if (shares && (!found || shares[1] > found[1])) found = shares;
  }
  return found;
}
