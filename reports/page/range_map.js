// The range map: a line a layer, the exponents of its output on the left and of its gradient on the right.
// It is a picture of one pixel a bin that the browser scales, so that 1,000 layers are drawn in a few milliseconds.

const SIGNS = { error: "✖", warning: "▲" };
const PANELS = ["activation", "gradient"];
const BANDS = ["flushed", "subnormal", "normal", "overflow"];
const HEAD = 50, FOOT = 26, ROW = 20, TALLEST = 760, DECADES = 6;
const map = { picture: document.createElement("canvas"), selected: -1, hovered: -1 };

const color = (name) => palettes[choice.theme][name];
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function bandOf(exponent) {
  return run.formats[choice.format].borders.filter((border) => exponent >= border).length;
}

// How many bins a tensor's values move at the chosen loss scale.
const octaves = (tensor) => Math.round(Math.log2(scaleRatio(tensor)));

function paintPicture() {
  const width = BINS * PANELS.length;
  map.picture.width = width;
  map.picture.height = Math.max(layers.length, 1);
  const context = map.picture.getContext("2d");
  const image = context.createImageData(width, map.picture.height);
  const channels = BANDS.map((band) => color(band).match(/\w\w/g).map((pair) => parseInt(pair, 16)));
  const bands = Array.from({ length: BINS }, (_, bin) => bandOf(run.exponentMin + bin));
  layers.forEach((layer, row) => {
    PANELS.forEach((kind, panel) => {
      const counts = new Float64Array(BINS);
      let total = 0;
      for (const tensor of tensorsOf(layer, kind)) {
        const shift = octaves(tensor);
        for (let bin = 0; bin < BINS; bin++) {
          const count = histograms[tensor * BINS + bin];
          counts[Math.min(Math.max(bin + shift, 0), BINS - 1)] += count;
          total += count;
        }
      }
      for (let bin = 0; bin < BINS; bin++) {
        if (!counts[bin]) continue;
        const darkness = Math.max(0.14, 1 + Math.log10(counts[bin] / total) / DECADES);
        const at = 4 * (row * width + panel * BINS + bin);
        image.data.set(channels[bands[bin]], at);
        image.data[at + 3] = 255 * darkness;
      }
    });
  });
  context.putImageData(image, 0, 0);
}

function mapLayout() {
  const width = byId("map-scroll").clientWidth;
  const fits = (TALLEST - HEAD - FOOT) / Math.max(layers.length, 1);
  const row = choice.zoom === "fit" ? Math.min(ROW, fits) : ROW;
  const gutter = Math.min(240, Math.round(width * 0.24));
  const gap = 14;
  const panel = (width - gutter - 2 * gap) / 2;
  const rows = row * layers.length;
  return {
    width, row, gutter, panel, rows,
    height: Math.min(TALLEST, rows + HEAD + FOOT),
    lefts: [gutter + gap / 2, gutter + panel + 1.5 * gap],
    top: byId("map-scroll").scrollTop,
  };
}

function drawMap() {
  const canvas = byId("map-canvas");
  if (!canvas) return;
  const layout = mapLayout();
  const density = window.devicePixelRatio || 1;
  byId("map-size").style.height = `${layout.rows + HEAD + FOOT}px`;
  canvas.style.height = `${layout.height}px`;
  canvas.width = Math.round(layout.width * density);
  canvas.height = Math.round(layout.height * density);
  const context = canvas.getContext("2d");
  context.scale(density, density);
  context.font = "12px ui-sans-serif, system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif";
  context.textBaseline = "middle";
  drawRows(context, layout);
  layout.lefts.forEach((left, panel) => drawFrame(context, layout, left, panel));
}

function drawRows(context, layout) {
  const space = layout.height - HEAD - FOOT;
  const bottom = HEAD + space;
  context.save();
  context.beginPath();
  context.rect(0, HEAD, layout.width, space);
  context.clip();
  const first = Math.floor(layout.top / layout.row);
  const last = Math.min(layers.length, Math.ceil((layout.top + space) / layout.row));
  const y = HEAD + first * layout.row - layout.top;
  context.imageSmoothingEnabled = layout.row < 1;
  layout.lefts.forEach((left, panel) => {
    context.fillStyle = style("--shade");
    context.fillRect(left, HEAD, layout.panel, space);
    context.drawImage(map.picture, panel * BINS, first, BINS, last - first, left, y, layout.panel, (last - first) * layout.row);
    drawBorders(context, layout, left);
  });
  if (layout.row >= 12) drawLines(context, layout, first, last);
  else drawGroups(context, layout, first, last);
  for (const place of [map.hovered, map.selected]) {
    if (place < 0) continue;
    context.strokeStyle = style("--ink");
    context.lineWidth = 1.5;
    const top = HEAD + place * layout.row - layout.top;
    if (top < bottom) context.strokeRect(1, top - 0.5, layout.width - 2, Math.max(layout.row, 3) + 1);
  }
  context.restore();
}

// Names, and lines between the rows, where a row is high enough to be read.
function drawLines(context, layout, first, last) {
  for (let place = first; place < last; place++) {
    const layer = layers[place];
    const top = HEAD + place * layout.row - layout.top;
    context.fillStyle = style("--card");
    for (const left of layout.lefts) context.fillRect(left, top, layout.panel, 1);
    const middle = top + layout.row / 2 + 0.5;
    if (layer.severity) {
      context.fillStyle = style(layer.severity === "error" ? "--bad" : "--attention");
      context.fillText(SIGNS[layer.severity], 2, middle);
    }
    context.fillStyle = style(layer.severity ? "--ink" : "--muted");
    context.fillText(fitted(context, layer.name, layout.gutter - 26), 18, middle);
    PANELS.forEach((kind, panel) => drawNonfinite(context, layout, layer, kind, layout.lefts[panel], middle));
  }
}

// Infinities and NaN are in no histogram: words at the side where they would be.
function drawNonfinite(context, layout, layer, kind, left, middle) {
  const found = tensorsOf(layer, kind);
  const words = [found.some((t) => tensors.infinities[t]) ? "∞" : "", found.some((t) => tensors.nans[t]) ? "NaN" : ""];
  const text = words.filter(Boolean).join(" ");
  if (!text && found.length) return;
  context.textAlign = "right";
  context.strokeStyle = style("--shade");
  context.lineWidth = 4;
  context.strokeText(text || "not recorded", left + layout.panel - 5, middle); // keeps it apart from what is below
  context.fillStyle = style(text ? "--bad" : "--muted");
  context.fillText(text || "not recorded", left + layout.panel - 5, middle);
  context.textAlign = "left";
}

// Where rows are thin, the parts of the model are named: layers whose ids begin alike.
function drawGroups(context, layout, first, last) {
  const groupOf = (place) => layers[place].name.split("/")[0];
  let free = 0; // where the next name has room
  for (let start = first; start < last; ) {
    let end = start + 1;
    while (end < last && groupOf(end) === groupOf(start)) end++;
    const top = HEAD + start * layout.row - layout.top;
    if (top >= free) {
      context.fillStyle = style("--line");
      context.fillRect(18, top, layout.gutter - 18, 1);
      context.fillStyle = style("--muted");
      context.fillText(fitted(context, groupOf(start), layout.gutter - 26), 18, top + 9);
      free = top + 18;
    }
    start = end;
  }
  for (let place = first; place < last; place++) {
    if (!layers[place].severity) continue;
    context.fillStyle = style(layers[place].severity === "error" ? "--bad" : "--attention");
    context.fillRect(4, HEAD + place * layout.row - layout.top - 1, 9, Math.max(layout.row, 2.5));
  }
}

const placeOf = (exponent, layout, left) =>
  left + (Math.min(Math.max(exponent - run.exponentMin, 0), BINS) / BINS) * layout.panel;

// The limits of the format: above the picture, and below the words in it.
function drawBorders(context, layout, left) {
  context.strokeStyle = style("--ink");
  context.globalAlpha = 0.55;
  context.setLineDash([3, 3]);
  for (const border of run.formats[choice.format].borders) {
    const x = placeOf(border, layout, left);
    if (x <= left || x >= left + layout.panel) continue;
    context.beginPath();
    context.moveTo(x, HEAD);
    context.lineTo(x, layout.height - FOOT);
    context.stroke();
  }
  context.setLineDash([]);
  context.globalAlpha = 1;
}

// Titles, the names of the bands and the axis.
function drawFrame(context, layout, left, panel) {
  const { borders } = run.formats[choice.format];
  const x = (exponent) => placeOf(exponent, layout, left);
  const bottom = layout.height - FOOT;
  context.textAlign = "left";
  context.fillStyle = style("--ink");
  context.font = context.font.replace(/^/, "600 ");
  const title = panel ? "Backward: gradients" : "Forward: outputs";
  context.fillText(layout.panel > 150 ? title : title.split(":")[0], left, 11);
  context.font = context.font.replace("600 ", "");
  context.textAlign = "center";
  const edges = [run.exponentMin, ...borders, run.exponentMin + BINS];
  const names = layout.panel > 380 ? ["becomes zero", "fewer digits", "full precision", "∞"] : ["0", "few", "full", "∞"];
  names.forEach((name, band) => {
    const [start, end] = [x(edges[band]), x(edges[band + 1])];
    if (end - start < 4) return;
    context.fillStyle = color(BANDS[band]);
    context.fillRect(start + 0.5, HEAD - 8, end - start - 1, 4);
    context.fillStyle = style("--muted");
    if (end - start > context.measureText(name).width + 4) context.fillText(name, (start + end) / 2, HEAD - 19);
  });
  context.fillStyle = style("--muted");
  const every = layout.panel > 380 ? 10 : 20;
  for (let exponent = -40; exponent <= 10; exponent += every) {
    context.fillRect(x(exponent), bottom, 1, 4);
    context.fillText(exponent ? `1e${Math.round(exponent * 0.3)}` : "1", x(exponent), bottom + 14);
  }
  context.textAlign = "left";
}

function fitted(context, name, room) {
  let text = short(name, 60);
  while (text.length > 2 && context.measureText(text).width > room) text = `…${text.slice(2)}`;
  return text;
}

function layerUnder(event) {
  const layout = mapLayout();
  const y = event.clientY - byId("map-canvas").getBoundingClientRect().top - HEAD + layout.top;
  const place = Math.floor(y / layout.row);
  return y >= 0 && place < layers.length ? place : -1;
}

// What is known of a layer, a line for each side.
function rangeLines(place) {
  return PANELS.map((kind, panel) => {
    const title = panel ? "Gradient" : "Output";
    const found = tensorsOf(layers[place], kind);
    if (!found.length) return `${title}: not recorded`;
    return found.map((tensor) => {
      const shares = predict(tensor);
      if (!shares) return `${title} (${tensors.dtype[tensor]}): no finite value that is not zero`;
      const lost = BANDS.filter((band) => band !== "normal").map((band) => `${band} ${bracket(shares[band])}`);
      return `${title} (${tensors.dtype[tensor]}): ${lost.join(", ")}`;
    }).join("; ");
  });
}

function showTip(event, place) {
  const tip = byId("map-tip");
  tip.hidden = place < 0;
  if (place < 0) return;
  const name = element("b", null, element("bdi", null, short(layers[place].name, 120)));
  tip.replaceChildren(name, ...rangeLines(place).map((line) => element("span", null, line)));
  const frame = byId("map").getBoundingClientRect();
  const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
  tip.style.left = `${Math.min(x + 16, Math.max(frame.width - tip.offsetWidth - 4, 0))}px`;
  tip.style.top = `${y + 18}px`;
}

function selectLayer(place) {
  const canvas = byId("map-canvas");
  const scroll = byId("map-scroll");
  map.selected = Math.min(Math.max(place, 0), layers.length - 1);
  const layout = mapLayout();
  const space = layout.height - HEAD - FOOT;
  const top = map.selected * layout.row;
  if (top < layout.top) scroll.scrollTop = top;
  if (top + layout.row > layout.top + space) scroll.scrollTop = top + layout.row - space;
  canvas.setAttribute("aria-valuenow", map.selected + 1);
  canvas.setAttribute("aria-valuetext", [short(layers[map.selected].name), ...rangeLines(map.selected)].join(". "));
  byId("map-summary").textContent = [short(layers[map.selected].name), ...rangeLines(map.selected)].join(" · ");
  drawMap();
}

const STEPS = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };

function startMap() {
  const canvas = byId("map-canvas");
  if (!canvas) return;
  canvas.setAttribute("aria-valuemax", layers.length);
  canvas.setAttribute("aria-valuetext", "No layer chosen");
  canvas.addEventListener("pointermove", (event) => {
    const place = layerUnder(event);
    if (place !== map.hovered) {
      map.hovered = place;
      drawMap();
    }
    showTip(event, place);
  });
  canvas.addEventListener("pointerleave", () => {
    map.hovered = -1;
    byId("map-tip").hidden = true;
    drawMap();
  });
  canvas.addEventListener("click", (event) => {
    const place = layerUnder(event);
    if (place >= 0) location.hash = layerAddress(place);
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && map.selected >= 0) location.hash = layerAddress(map.selected);
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    selectLayer(map.selected < 0 ? 0 : map.selected + STEPS[event.key]);
  });
  byId("map-scroll").addEventListener("scroll", drawMap, { passive: true });
  new ResizeObserver(drawMap).observe(byId("map"));
  onChoice(() => {
    paintPicture();
    drawMap();
    summarizeMap();
  });
}

// The picture in a sentence, for those who do not see it, too.
function summarizeMap() {
  const losing = (field) => layers.filter((layer) => (worst(layer, field)?.[0] ?? 0) > 0.01).length;
  const scale = choice.scaleExponent === null ? "the recorded loss scale" : `loss scale ${number(2 ** choice.scaleExponent)}`;
  byId("map-summary").textContent =
    `In ${choice.format} at ${scale}: ${losing("flushed")} of ${number(layers.length)} layers would flush more than 1% ` +
    `of the values of their output or gradient, ${losing("overflow")} would overflow with more than 1%.`;
}
