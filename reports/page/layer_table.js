// The table of layers: search, filters, sorting. Only the rows that are shown are in the document.

const FEW = 100;
const table = { key: "rank", descending: false, shown: FEW, found: [], pending: 0 };
const RANK = { error: 0, warning: 1 };

const outputs = (layer) => tensorsOf(layer, "activation");

// How often the largest output may double, in the format that it has; null where nothing is known.
function headroom(layer) {
  const rooms = outputs(layer).map((t) => {
    const largest = tensors.absmax[t];
    return largest ? Math.log2(run.formats[tensors.dtype[t]].max / largest) : null;
  });
  const known = rooms.filter((room) => room !== null);
  return known.length ? Math.min(...known) : null;
}

function subnormalShare(layer, kind) {
  let [subnormals, nonzero] = [0, 0];
  for (const tensor of tensorsOf(layer, kind)) {
    subnormals += tensors.subnormals[tensor];
    nonzero += tensors.nonzero[tensor];
  }
  return nonzero ? subnormals / nonzero : null;
}

const nonfinite = (layer) => layer.tensors.reduce((sum, t) => sum + tensors.infinities[t] + tensors.nans[t], 0);
const heat = (value, warm, hot) => (value === null ? "" : value > hot ? " hot" : value > warm ? " warm" : "");

// title, width, sorting value, cell text, and whether most comes first; recomputed where the choice matters.
const COLUMNS = {
  rank: { title: "Layer", width: "14rem", of: (l) => l.rank },
  type: { title: "Type", width: "10rem", of: (l) => l.type },
  dtype: { title: "Computes in", of: (l) => l.dtype },
  headroom: { title: "Headroom, bits", number: true, of: (l) => l.headroom, text: (v) => v.toFixed(1),
    heat: (v, l) => (l.dtype !== "float32" && v < 3 ? (v < 1 ? " hot" : " warm") : "") },
  subnormal: { title: "Subnormal output", number: true, most: true, of: (l) => l.subnormal, text: percent, heat: (v) => heat(v, 0.05, 0.5) },
  gradient: { title: "Subnormal gradient", number: true, most: true, of: (l) => l.gradient, text: percent, heat: (v) => heat(v, 0.05, 0.5) },
  nonfinite: { title: "Inf, NaN", number: true, most: true, of: (l) => l.nonfinite, text: number, heat: (v) => heat(v, 0, 0) },
  flushed: { title: "Would flush", number: true, most: true, of: (l) => l.flushed?.[1] ?? null, text: (v, l) => bracket(l.flushed) },
  overflow: { title: "Would overflow", number: true, most: true, of: (l) => l.overflow?.[1] ?? null, text: (v, l) => bracket(l.overflow) },
  ms: { title: "ms a step", number: true, most: true, of: (l) => l.ms, text: number },
  parameters: { title: "Parameters", number: true, most: true, of: (l) => l.parameters, text: number },
};

function computeColumns() {
  layers.forEach((layer, place) => {
    layer.place = place;
    layer.headroom = headroom(layer);
    layer.subnormal = subnormalShare(layer, "activation");
    layer.gradient = subnormalShare(layer, "gradient");
    layer.nonfinite = nonfinite(layer);
    layer.text = `${layer.id}\n${layer.name}\n${layer.type}`.toLowerCase();
  });
  // Findings first, then the forward order.
  const ranked = layers.toSorted((a, b) => (RANK[a.severity] ?? 2) - (RANK[b.severity] ?? 2) || a.place - b.place);
  ranked.forEach((layer, rank) => (layer.rank = rank));
}

function computePredictions() {
  for (const layer of layers) {
    layer.flushed = worst(layer, "flushed");
    layer.overflow = worst(layer, "overflow");
  }
}

function findLayers() {
  const wanted = byId("search").value.trim().toLowerCase();
  const severity = byId("filter-severity").value;
  const dtype = byId("filter-dtype").value;
  const passes = (layer) =>
    layer.text.includes(wanted) &&
    (!dtype || layer.dtype === dtype) &&
    (!severity || (severity === "unseen" ? layer.unseen : severity === layer.severity || (severity === "warning" && layer.severity)));
  const { of } = COLUMNS[table.key];
  const sign = table.descending ? -1 : 1;
  table.found = layers.filter(passes).sort((a, b) => sign * compare(of(a), of(b), sign) || a.place - b.place);
}

// What is not known comes last, whichever way the table is sorted.
function compare(a, b, sign) {
  if (a === null || b === null) return ((a === null) - (b === null)) * sign;
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}

function row(layer) {
  const cells = Object.entries(COLUMNS).map(([key, column]) => {
    if (key === "rank") return nameCell(layer);
    const value = column.of(layer);
    const text = value === null ? ABSENT : column.text ? column.text(value, layer) : value;
    const hot = value !== null && column.heat ? column.heat(value, layer) : "";
    return element("td", { class: `${column.number ? "n" : ""}${hot}` }, text);
  });
  return element("tr", null, ...cells);
}

function nameCell(layer) {
  const sign = layer.severity
    ? element("span", { class: `mark ${layer.severity}`, role: "img", "aria-label": layer.severity }, SIGNS[layer.severity])
    : null;
  return element("th", { scope: "row" }, sign, link(layer.place));
}

function drawTable() {
  cancelAnimationFrame(table.pending);
  const shown = table.found.slice(0, table.shown);
  byId("layer-table").tBodies[0].replaceChildren(...shown.slice(0, FEW).map(row));
  if (shown.length > FEW) appendRows(shown, FEW);
  const all = table.found.length === layers.length ? "" : ` of ${number(layers.length)}`;
  const part = shown.length < table.found.length ? `, the first ${number(shown.length)} shown` : "";
  byId("layers-count").textContent = `${number(table.found.length)}${all} layers${part}.`;
  const more = byId("more");
  more.hidden = shown.length === table.found.length;
  more.textContent = `Show all ${number(table.found.length)}`;
}

// A frame for every hundred rows, so that the page answers while a long table is being filled.
function appendRows(rows, from) {
  table.pending = requestAnimationFrame(() => {
    byId("layer-table").tBodies[0].append(...rows.slice(from, from + FEW).map(row));
    if (from + FEW < rows.length) appendRows(rows, from + FEW);
  });
}

function updateTable() {
  findLayers();
  drawTable();
}

function sortBy(key) {
  table.descending = table.key === key ? !table.descending : Boolean(COLUMNS[key].most);
  table.key = key;
  markSorting();
  updateTable();
}

function markSorting() {
  for (const head of byId("layer-table").tHead.rows[0].cells) {
    if (head.dataset.key === table.key) head.setAttribute("aria-sort", table.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
}

function startTable() {
  if (!byId("layer-table")) return;
  const heads = Object.entries(COLUMNS).map(([key, column]) => {
    const button = element("button", { type: "button" }, column.title);
    button.addEventListener("click", () => sortBy(key));
    const head = element("th", { scope: "col", class: column.number ? "n" : null, "data-key": key }, button);
    if (column.width) head.style.width = column.width;
    return head;
  });
  byId("layer-table").append(element("thead", null, element("tr", null, ...heads)), element("tbody"));
  for (const dtype of new Set(layers.map((layer) => layer.dtype))) byId("filter-dtype").append(new Option(dtype, dtype));
  for (const id of ["search", "filter-severity", "filter-dtype"]) {
    byId(id).addEventListener("input", () => {
      table.shown = FEW;
      updateTable();
    });
  }
  byId("more").addEventListener("click", () => {
    table.shown = Infinity;
    drawTable();
  });
  computeColumns();
  markSorting();
  onChoice(() => {
    computePredictions();
    updateTable();
  });
}
