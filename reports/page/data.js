// What Python wrote into the page: records as JSON, arrays as bytes in base64. And what the visitor chose.

const byId = (id) => document.getElementById(id);
const readJson = (id) => JSON.parse(byId(id).textContent);

const run = readJson("page-data");
const palettes = readJson("colors");
const { layers, tensors } = run;

function decoded(base64, ArrayType) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ArrayType(bytes.buffer);
}

// The tensors of each layer, by index.
for (const layer of layers) layer.tensors = [];
tensors.layer.forEach((place, tensor) => layers[place].tensors.push(tensor));

const isGradient = (tensor) => tensors.kind[tensor] === "gradient" || tensors.kind[tensor] === "weight_gradient";
const tensorsOf = (layer, kind) => layer.tensors.filter((tensor) => tensors.kind[tensor] === kind);

// scaleExponent: the loss scale to predict for is two to this power; null stands for the recorded one.
const choice = { format: run.format, scaleExponent: null, zoom: "fit", theme: "light" };
const listeners = [];
const onChoice = (listener) => listeners.push(listener);
function choose(changes) {
  Object.assign(choice, changes);
  for (const listener of listeners) listener();
}

const ABSENT = "–";

function percent(share) {
  if (share === null || share === undefined) return ABSENT;
  if (share > 0 && share < 0.001) return "<0.1%";
  if (share >= 0.995 && share < 1) return ">99%";
  return `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)}%`;
}

function number(value) {
  if (value === null || value === undefined) return ABSENT;
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e7 ? Number(value.toPrecision(3)).toLocaleString("en") : value.toExponential(2);
}

// Make an element; text is only ever set as text, so no name can act.
function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Half a surrogate pair has no place in an address; such a layer is addressed by its number.
function layerAddress(place) {
  const { id } = layers[place];
  return `#layer=${id.isWellFormed && !id.isWellFormed() ? `@${place}` : encodeURIComponent(id)}`;
}

function layerAt(address) {
  const wanted = /^#layer=(.*)$/s.exec(address)?.[1];
  if (wanted === undefined) return -1;
  try {
    const id = decodeURIComponent(wanted);
    const found = layers.findIndex((layer) => layer.id === id);
    return found < 0 && /^@\d+$/.test(id) && Number(id.slice(1)) < layers.length ? Number(id.slice(1)) : found;
  } catch {
    return -1; // a cut-off address
  }
}

// A long name's end, which tells most.
const short = (name, most = 60) => (name.length <= most ? name : `…${name.slice(1 - most)}`);
const link = (place, most = 60) =>
  element("a", { href: layerAddress(place) }, element("bdi", null, short(layers[place].name, most)));
