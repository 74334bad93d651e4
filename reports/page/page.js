// The controls above the sections, and the start of all parts.

function radios(place, name, options, chosen, then) {
  for (const [value, title] of options) {
    const input = element("input", { type: "radio", name, value, checked: value === chosen });
    input.addEventListener("change", () => then(value));
    byId(place).append(element("label", null, input, title));
  }
}

function startControls() {
  if (!byId("map-canvas")) return;
  const formats = Object.entries(run.formats).filter(([, format]) => format.bits <= 16).map(([name]) => [name, name.replace("_", " ")]);
  radios("formats", "format", formats, choice.format, (format) => choose({ format }));
  radios("zooms", "zoom", [["fit", "whole model"], ["read", "every name"]], choice.zoom, (zoom) => {
    choice.zoom = zoom;
    byId("map-scroll").scrollTop = 0;
    drawMap();
  });
  byId("zooms").hidden = mapLayout().row >= ROW;
  const scale = byId("scale");
  const recorded = run.lossScale ? Math.log2(run.lossScale) : 0;
  const tell = () => {
    scale.value = choice.scaleExponent ?? recorded;
    const value = choice.scaleExponent === null ? (run.lossScale ?? 1) : 2 ** choice.scaleExponent;
    const words = choice.scaleExponent === null ? (run.lossScale ? " (recorded)" : " (not scaled)") : "";
    byId("scale-value").textContent = `${number(value)}${words}`;
    scale.setAttribute("aria-valuetext", byId("scale-value").textContent);
  };
  scale.addEventListener("input", () => choose({ scaleExponent: Number(scale.value) }));
  byId("scale-recorded").addEventListener("click", () => choose({ scaleExponent: null }));
  onChoice(tell);
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
    choose({ theme });
  };
  let before = null;
  byId("theme").addEventListener("click", () => show(choice.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => show(dark.matches ? "dark" : "light"));
  addEventListener("beforeprint", () => {
    before = choice.theme;
    show("light"); // paper is white
  });
  addEventListener("afterprint", () => show(before ?? choice.theme));
  show(dark.matches ? "dark" : "light");
}

function startCopy() {
  byId("copy")?.addEventListener("click", async () => {
    const button = byId("copy");
    getSelection().selectAllChildren(byId("policy"));
    try {
      await navigator.clipboard.writeText(byId("policy").textContent);
    } catch {
      document.execCommand("copy"); // a page from disk may have no clipboard
    }
    button.textContent = button.dataset.copied;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

startMap();
startTable();
startControls();
startFigures();
startTheme(); // the first choice: draws everything
startDialog();
startCopy();
