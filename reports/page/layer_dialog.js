// A layer's own page: what was found, its tensors, their ranges and how they went over the run.

const KIND_TITLES = { activation: "Output", gradient: "Gradient", weight: "Weights", weight_gradient: "Weight gradients" };
const dialog = byId("layer-dialog");
const past = {
  absmax: decoded(run.history.absmax, Int16Array),
  smallest: decoded(run.history.smallest, Int16Array),
  subnormal: decoded(run.history.subnormal, Uint16Array),
  nonfinite: decoded(run.history.nonfinite, Uint8Array),
};
const STRETCHES = run.history.firstStep.length;
let shownLayer = -1;

function showLayer(place) {
  const layer = layers[place];
  shownLayer = place;
  dialog.replaceChildren(head(layer, place), element("div", { class: "dialog-body" }, ...body(layer)));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  for (const canvas of dialog.querySelectorAll("canvas")) drawHistogram(canvas, Number(canvas.dataset.tensor));
  const figure = dialog.querySelector(".figure");
  // After the text has been shown: the figure takes longer.
  if (figure) requestAnimationFrame(() => setTimeout(() => figure.isConnected && drawFigure(figure, historyFigure(layer))));
}

function head(layer, place) {
  const go = (label, to, text) => {
    const button = element("button", { type: "button", "aria-label": label, disabled: to < 0 || to >= layers.length }, text);
    button.addEventListener("click", () => location.replace(layerAddress(to)));
    return button;
  };
  const close = element("button", { type: "button", "aria-label": "Close", autofocus: true }, "✕");
  close.addEventListener("click", () => dialog.close());
  const facts = [layer.type, `computes in ${layer.dtype}`, `policy ${layer.policy}`, `${number(layer.parameters)} parameters`];
  if (layer.ms !== null) facts.push(`${number(layer.ms)} ms a step (${percent(layer.share)})`);
  const title = element("h2", { id: "layer-title" }, element("bdi", null, layer.name), element("small", null, facts.join(" · ")));
  return element("div", { class: "dialog-head" }, title, go("Previous layer", place - 1, "↑"), go("Next layer", place + 1, "↓"), close);
}

function body(layer) {
  const parts = [];
  if (layer.findings.length) {
    const items = layer.findings.map(([severity, sentence]) => element("li", { class: `finding ${severity}` }, sentence));
    parts.push(element("ul", { class: "findings" }, ...items));
  }
  if (layer.path && layer.path !== layer.name) parts.push(fact("Path in Keras", layer.path));
  if (layer.inputs.length) parts.push(fact("Reads", ...layer.inputs.flatMap((place, n) => [n ? ", " : "", link(place)])));
  const readers = layers.flatMap((other, place) => (other.inputs.includes(layer.place) ? [place] : []));
  if (readers.length) parts.push(fact("Read by", ...readers.slice(0, 20).flatMap((place, n) => [n ? ", " : "", link(place)])));
  if (layer.unseen) parts.push(element("p", { class: "missing" }, `Not recorded: ${layer.unseen}`));
  if (!layer.tensors.length) return parts;
  parts.push(element("h3", null, "Tensors"), element("div", { class: "scroll" }, tensorTable(layer)));
  for (const tensor of layer.tensors) {
    const title = `${KIND_TITLES[tensors.kind[tensor]]} (${tensors.dtype[tensor]})`;
    const label = `Values by exponent, ${title}`;
    parts.push(element("h3", null, title), element("canvas", { "data-tensor": String(tensor), role: "img", "aria-label": label }));
  }
  parts.push(element("h3", null, "Over the run"), element("p", { class: "note" }, historyNote()));
  parts.push(element("div", { class: "figure", role: "img", "aria-label": "Smallest and largest magnitudes over the train steps" }));
  return parts;
}

const fact = (title, ...content) => element("p", { class: "note" }, `${title}: `, ...content);

function historyNote() {
  const stretches = `Each point is the most extreme of the samples it stands for (${number(STRETCHES)} in all).`;
  return `The band spans the smallest to the largest magnitude; dotted lines are the limits of the tensor's own format. ` +
    `${stretches} Gradients are shown as the loss scale of their time multiplied them.`;
}

const TENSOR_COLUMNS = [
  ["Tensor", (t) => KIND_TITLES[tensors.kind[t]]],
  ["Format", (t) => tensors.dtype[t]],
  ["Values", (t) => number(tensors.values[t])],
  ["Zeros", (t) => percent(tensors.values[t] ? tensors.zeros[t] / tensors.values[t] : null)],
  ["Subnormal", (t) => percent(tensors.nonzero[t] ? tensors.subnormals[t] / tensors.nonzero[t] : null)],
  ["Inf", (t) => number(tensors.infinities[t])],
  ["NaN", (t) => number(tensors.nans[t])],
  ["Smallest", (t) => number(tensors.smallest[t])],
  ["Largest", (t) => number(tensors.absmax[t])],
  ["Lost updates", (t) => percent(tensors.updates[t] ? tensors.lostUpdates[t] / tensors.updates[t] : null)],
  ["Histogram", (t) => (tensors.sampled[t] ? "sampled" : "exact")],
];

function tensorTable(layer) {
  const heads = TENSOR_COLUMNS.map(([title], n) => element("th", { scope: "col", class: n > 1 ? "n" : null }, title));
  const rows = layer.tensors.map((tensor) => {
    const cells = TENSOR_COLUMNS.map(([, text], n) =>
      element(n ? "td" : "th", { class: n > 1 ? "n" : null, scope: n ? null : "row" }, text(tensor)));
    return element("tr", null, ...cells);
  });
  return element("table", null, element("thead", null, element("tr", null, ...heads)), element("tbody", null, ...rows));
}

// Bars of logarithmic height, a bar an octave, in the colours of the bands of the tensor's own format.
function drawHistogram(canvas, tensor) {
  const density = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  [canvas.width, canvas.height] = [width * density, height * density];
  const context = canvas.getContext("2d");
  context.scale(density, density);
  context.font = "11px ui-sans-serif, system-ui, 'DejaVu Sans', sans-serif";
  context.textAlign = "center";
  const { borders } = run.formats[tensors.dtype[tensor]];
  const total = sums[(tensor + 1) * (BINS + 1) - 1];
  const [bar, floor] = [width / BINS, height - 20];
  for (let bin = 0; bin < BINS; bin++) {
    const exponent = run.exponentMin + bin;
    const count = histograms[tensor * BINS + bin];
    if (count) {
      const tall = Math.max(2, (1 + Math.log10(count / total) / DECADES) * (floor - 6));
      context.fillStyle = color(BANDS[borders.filter((border) => exponent >= border).length]);
      context.fillRect(bin * bar + 0.5, floor - tall, bar - 1, tall);
    }
    if (borders.includes(exponent)) {
      context.fillStyle = style("--muted");
      context.fillRect(bin * bar, 0, 1, floor);
    }
    if (exponent % 10 === 0) {
      context.fillStyle = style("--muted");
      context.fillText(exponent ? `1e${Math.round(exponent * 0.3)}` : "1", bin * bar, height - 5);
    }
  }
  context.fillStyle = style("--line");
  context.fillRect(0, floor, width, 1);
}

function historyFigure(layer) {
  const steps = run.history.lastStep;
  const shown = layer.tensors;
  const layout = {
    grid: { rows: Math.ceil(shown.length / 2), columns: 2, pattern: "independent", xgap: 0.14, ygap: 0.3 },
    height: 60 + 230 * Math.ceil(shown.length / 2), margin: { l: 60, r: 20, t: 30, b: 40 },
    showlegend: false, shapes: [], annotations: [],
  };
  const data = shown.flatMap((tensor, n) => {
    const axes = { xaxis: `x${n ? n + 1 : ""}`, yaxis: `y${n ? n + 1 : ""}` };
    const at = (name) => steps.map((_, stretch) => past[name][tensor * STRETCHES + stretch]);
    const powers = (name) => at(name).map((code) => (code === -32768 ? null : 2 ** (code / run.history.stepsAnOctave)));
    const shares = at("subnormal").map((code) => (code === 65535 ? ABSENT : percent(code / run.history.shareSteps)));
    const bad = at("nonfinite");
    const hue = palettes.light[isGradient(tensor) ? "flushed" : "normal"];
    layout[`yaxis${n ? n + 1 : ""}`] = { type: "log", exponentformat: "power", nticks: 6 };
    layout[`xaxis${n ? n + 1 : ""}`] = { title: { text: "train step" }, nticks: 6 };
    layout.annotations.push({
      text: `${KIND_TITLES[tensors.kind[tensor]]} (${tensors.dtype[tensor]})`, showarrow: false, yanchor: "bottom",
      xref: `${axes.xaxis} domain`, yref: `${axes.yaxis} domain`, x: 0, y: 1.01, xanchor: "left",
    });
    const largest = powers("absmax");
    const known = [...largest, ...powers("smallest")].filter((value) => value);
    const limits = run.formats[tensors.dtype[tensor]];
    for (const limit of [limits.max, limits.smallestNormal]) {
      // Only limits near the values: a far one would squeeze them into a line.
      if (known.length && limit < Math.max(...known) * 1e4 && limit > Math.min(...known) / 1e4)
        layout.shapes.push({ type: "line", xref: `${axes.xaxis} domain`, yref: axes.yaxis, x0: 0, x1: 1, y0: limit, y1: limit, line: { color: palettes.light.overflow, width: 1, dash: "dot" } });
    }
    const mode = STRETCHES > 1 ? "lines" : "markers";
    return [
      { x: steps, y: powers("smallest"), mode, line: { color: hue, width: 1 }, hovertemplate: "smallest %{y:.2e}<extra></extra>", ...axes },
      { x: steps, y: largest, text: shares, mode, fill: "tonexty", line: { color: hue, width: 2 }, hovertemplate: "largest %{y:.3g}, subnormal %{text}<extra></extra>", ...axes },
      { x: steps.filter((_, k) => bad[k]), y: largest.filter((_, k) => bad[k]).map((value) => value ?? 1), mode: "markers", marker: { color: palettes.light.overflow, symbol: "x", size: 8 }, hovertemplate: "infinities or NaN<extra></extra>", ...axes },
    ];
  });
  return { data, layout };
}

function followAddress() {
  const place = layerAt(location.hash);
  if (place >= 0) showLayer(place);
  else if (dialog.open) dialog.close();
}

function startDialog() {
  addEventListener("hashchange", followAddress);
  // This event comes a while after the dialog is gone: another layer may be on its way by then, or shown already.
  dialog.addEventListener("close", () => {
    if (!dialog.open && layerAt(location.hash) === shownLayer) history.replaceState(null, "", location.pathname + location.search);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  onChoice(() => dialog.open && followAddress());
  followAddress();
}
