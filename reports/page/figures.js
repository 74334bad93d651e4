// Figures that Python made, drawn by plotly in the page's colours. Plotly is started when the page has been shown.

const figures = readJson("figure-data");
let plotly = null;

function startPlotly() {
  if (!plotly) {
    const script = document.createElement("script");
    script.textContent = byId("plotly").textContent;
    document.head.append(script);
    plotly = window.Plotly;
  }
  return plotly;
}

// The light palette's colours become the dark one's wherever they stand in a figure.
function themed(figure) {
  let text = JSON.stringify(figure);
  for (const [name, light] of Object.entries(palettes.light)) text = text.replaceAll(light, palettes[choice.theme][name]);
  const { data, layout } = JSON.parse(text);
  const axis = { gridcolor: style("--line"), linecolor: style("--line"), zerolinecolor: style("--line"), automargin: true };
  for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) layout[name] = { ...layout[name], ...axis };
  Object.assign(layout, {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { ...layout.font, color: style("--ink"), family: getComputedStyle(document.body).fontFamily },
    hoverlabel: { ...layout.hoverlabel, bgcolor: style("--card"), bordercolor: style("--muted"), font: { color: style("--ink") } },
  });
  return { data, layout };
}

const PAPER = 660; // pixels between the margins of a sheet
let printing = false;

function drawFigure(place, figure) {
  const { data, layout } = themed(figure);
  Object.assign(layout, printing ? { width: PAPER, autosize: false } : { autosize: true });
  startPlotly().react(place, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

function drawFigures() {
  for (const place of document.querySelectorAll("[data-figure].drawn")) drawFigure(place, figures[place.dataset.figure]);
}

function startFigures() {
  const places = [...document.querySelectorAll("[data-figure]")];
  const draw = (place) => {
    if (place.classList.contains("drawn")) return;
    place.classList.add("drawn");
    drawFigure(place, figures[place.dataset.figure]);
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) draw(entry.target);
  }, { rootMargin: "300px" });
  const whenIdle = window.requestIdleCallback ?? ((work) => setTimeout(work, 200));
  whenIdle(() => {
    startPlotly();
    for (const place of places) watcher.observe(place);
  });
  addEventListener("beforeprint", () => {
    printing = true;
    places.forEach(draw);
    drawFigures();
  });
  addEventListener("afterprint", () => {
    printing = false;
    drawFigures();
  });
  onChoice(drawFigures);
}
