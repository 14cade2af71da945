"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const find = (selector, within = document) => [...within.querySelectorAll(selector)];
  const isDark = () => (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";

  // ---- plots: figures come without colours -------------------------------------------------------------------
  const palettes = {
    light: { ours: ["#0b5394", "#3d85c6", "#7ba7d1"], others: ["#d55e00", "#00805c", "#a8457f", "#9a7400", "#555c65", "#6a51a3"],
             ink: "#1c2026", muted: "#59616b", grid: "#e6e7e3", line: "#9a9e98", paper: "#fdfdfb" },
    dark: { ours: ["#7dbdf2", "#b5d9f7", "#4f97d3"], others: ["#ff9a57", "#3fd1a2", "#eb94c6", "#efc64f", "#aab2bb", "#b8a5e8"],
            ink: "#e7e8e5", muted: "#a0a8b1", grid: "#272c32", line: "#5b646e", paper: "#14171b" },
  };
  const symbols = ["square", "diamond", "triangle-up", "x", "cross", "triangle-down"];
  const dashes = ["solid", "dash", "dashdot", "longdash", "longdashdot"];
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const seats = {}; // of one claim: which contender has which of the other colours, the same in all its figures

  const isReference = (trace) => trace.type === "scatter" && Boolean(trace.line && trace.line.dash);
  const figureOf = (plot) => figures[plot.dataset.claim][plot.dataset.index];

  function roles(plot) {
    const figure = figureOf(plot);
    const named = figure.data.filter((trace) => figure.ours.includes(trace.name)).map((trace) => trace.name);
    const ours = named.length ? named : figure.data.slice(0, 1).map((trace) => trace.name);
    const taken = (seats[plot.dataset.claim] ??= new Map());
    return figure.data.map((trace) => {
      if (isReference(trace)) return { kind: "reference", seat: 0 };
      if (ours.includes(trace.name)) return { kind: "ours", seat: ours.indexOf(trace.name) };
      if (!taken.has(trace.name)) taken.set(trace.name, taken.size);
      return { kind: "other", seat: taken.get(trace.name) };
    });
  }

  function styled(trace, role, colours) {
    const ours = role.kind === "ours";
    if (role.kind === "reference") {
      return { ...trace, line: { ...trace.line, color: colours.muted, width: 1.4, dash: "dot" }, hoverinfo: "name+y" };
    }
    const color = ours ? colours.ours[role.seat % colours.ours.length] : colours.others[role.seat % colours.others.length];
    if (trace.type === "bar") {
      const marker = { color: ours ? color : color + "66", line: { color, width: 1.5 }, ...trace.marker };
      const error_y = trace.error_y && { ...trace.error_y, color: colours.ink, thickness: 1.2, width: 4 };
      return { ...trace, marker, error_y };
    }
    if (trace.type !== "scatter") return trace;
    const marks = (trace.mode || "").includes("markers");
    const symbol = ours ? "circle" : symbols[role.seat % symbols.length];
    return {
      ...trace,
      line: { color, width: ours ? 3.2 : 1.6, dash: marks || ours ? "solid" : dashes[role.seat % dashes.length], ...trace.line },
      marker: { color, size: ours ? 8 : 6.5, symbol, ...trace.marker },
    };
  }

  const superscripts = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

  function inWords(value) {
    if (value >= 0.001 && value < 1e5) return Number(value.toPrecision(3)).toLocaleString("en");
    const [mantissa, exponent] = value.toExponential(1).split("e").map(Number);
    return `${mantissa === 1 ? "" : `${mantissa} × `}10${[...String(exponent)].map((digit) => superscripts[digit]).join("")}`;
  }

  // a logarithmic axis is marked at the points themselves where they are few, else at 1, 2, 5 or at powers of ten
  function ticks(data, axis, most) {
    const values = data.flatMap((trace) => trace[axis[0]] || []).filter((value) => value > 0);
    if (!values.length) return {};
    const points = [...new Set(values)].sort((a, b) => a - b);
    const decades = Math.log10(points.at(-1) / points[0]);
    const apart = points.slice(1).every((value, i) => Math.log10(value / points[i]) * most > decades);
    let marks = points;
    if (axis[0] !== "x" || points.length > most || !apart) {
      const [first, last] = [Math.floor(Math.log10(points[0])), Math.ceil(Math.log10(points.at(-1)))];
      const step = Math.ceil((last - first) / most);
      const powers = Array.from({ length: last - first + 1 }, (_, i) => first + i).filter((power) => power % step === 0);
      marks = powers.flatMap((power) => (decades < 2 ? [1, 2, 5] : [1]).map((digit) => Number(`${digit}e${power}`)));
    }
    return { tickvals: marks, ticktext: marks.map(inWords) };
  }

  function layoutOf(figure, colours, narrow) {
    const font = { family: getComputedStyle(document.body).fontFamily, size: narrow ? 12 : 13, color: colours.muted };
    const columns = figure.data.reduce((sum, trace) => sum + (trace.type === "bar" ? trace.x.length : 0), 0);
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, showlegend: false, hovermode: "closest",
      margin: { l: 8, r: 12, t: 12, b: 8 }, bargap: Math.max(0.28, 0.8 - 0.07 * columns), bargroupgap: 0.08,
      hoverlabel: { bgcolor: colours.paper, bordercolor: colours.line, font: { ...font, color: colours.ink }, namelength: -1 },
      ...figure.layout,
    };
    for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))])) {
      const own = layout[name] || {};
      const title = typeof own.title === "string" ? { text: own.title } : own.title;
      const log = own.type === "log" ? ticks(figure.data, name, narrow ? 5 : 7) : {};
      layout[name] = {
        automargin: true, gridcolor: colours.grid, zerolinecolor: colours.grid, linecolor: colours.line, tickcolor: colours.line,
        ticks: "outside", ticklen: 4, showline: name.startsWith("x"), showgrid: !name.startsWith("x"), nticks: narrow ? 5 : 8,
        ...log, ...own, title: title && { standoff: 10, ...title, font: { ...font, color: colours.ink, ...title.font } },
      };
      if (own.type === undefined) delete layout[name].type;
    }
    return layout;
  }

  function draw(plot, mode = isDark() ? "dark" : "light") {
    const figure = figureOf(plot);
    const colours = palettes[mode];
    const cast = roles(plot);
    const hidden = plot.hiddenTraces || new Set();
    const data = figure.data.map((trace, i) => ({ ...styled(trace, cast[i], colours), visible: !hidden.has(i) }));
    const onTop = (i) => data[i].type === "scatter" && cast[i].kind === "ours";
    const order = data.map((_, i) => i).sort((a, b) => onTop(a) - onTop(b));
    plot.drawn = true;
    Plotly.react(plot, order.map((i) => data[i]), layoutOf(figure, colours, plot.clientWidth < 480), { displayModeBar: false, responsive: true });
    legend(plot, data, cast);
  }

  function legend(plot, data, cast) {
    const place = plot.nextElementSibling;
    const order = data.map((_, i) => i).sort((a, b) => (cast[b].kind === "ours") - (cast[a].kind === "ours"));
    const focused = [...place.children].indexOf(document.activeElement);
    place.replaceChildren(...order.filter((i) => data[i].name).map((i) => key(plot, data[i], cast[i], i)));
    if (focused >= 0) place.children[focused].focus();
  }

  function key(plot, trace, role, index) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = role.kind;
    button.setAttribute("aria-pressed", String(trace.visible));
    button.append(swatch(trace), trace.name);
    button.addEventListener("click", () => {
      plot.hiddenTraces ??= new Set();
      if (!plot.hiddenTraces.delete(index)) plot.hiddenTraces.add(index);
      draw(plot);
    });
    return button;
  }

  const shapes = { // in a box of 30 x 12
    circle: '<circle cx="15" cy="6" r="4.4"/>', square: '<path d="M11 2h8v8h-8z"/>', diamond: '<path d="M15 .8l5 5.2-5 5.2-5-5.2z"/>',
    "triangle-up": '<path d="M15 1l5 9H10z"/>', "triangle-down": '<path d="M15 11l5-9H10z"/>',
    x: '<path d="M11 2l8 8M19 2l-8 8" stroke-width="3"/>', cross: '<path d="M15 1v10M10 6h10" stroke-width="3"/>',
  };

  function swatch(trace) {
    const bar = trace.type === "bar";
    const dash = { dash: "6 4", dot: "2 3", dashdot: "7 3 2 3", longdash: "10 4", longdashdot: "10 3 2 3" }[trace.line?.dash] || "";
    const lines = (trace.mode || "lines").includes("lines");
    const box = `<rect x="8" y="0" width="14" height="12" rx="1.5" stroke-width="1.5"/>`;
    const line = lines ? `<path d="M0 6h30" stroke-width="${Number(trace.line?.width) || 2}" stroke-dasharray="${dash}"/>` : "";
    const mark = (trace.mode || "").includes("markers") ? shapes[trace.marker.symbol] || "" : "";
    const picture = document.createElement("span");
    picture.innerHTML = `<svg viewBox="0 0 30 12" aria-hidden="true">${bar ? box : `${line}<g stroke-width="0">${mark}</g>`}</svg>`;
    const svg = picture.firstChild;
    svg.style.stroke = (bar ? trace.marker.line.color : trace.line?.color) || "currentColor";
    svg.style.fill = (bar ? trace.marker.color : trace.line?.color) || "currentColor";
    return svg;
  }

  const plots = find(".plot");
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting && !entry.target.drawn) draw(entry.target);
  }, { rootMargin: "300px" });
  plots.forEach((plot) => watcher.observe(plot));
  const redraw = () => plots.filter((plot) => plot.drawn).forEach((plot) => draw(plot));

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = find("details.measured:not([open])");
    opened.forEach((details) => { details.open = true; });
    plots.forEach((plot) => draw(plot, "light"));
  });
  addEventListener("afterprint", () => {
    opened.forEach((details) => { details.open = false; });
    redraw();
  });

  // ---- light and dark ----------------------------------------------------------------------------------------
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("hadamard-theme", root.dataset.theme); } catch { /* no storage: this visit only */ }
    redraw();
  });
  dark.addEventListener("change", redraw);

  // ---- small pictures keep their pixels ----------------------------------------------------------------------
  for (const image of find(".pictures img")) {
    const mark = () => image.classList.toggle("small", image.naturalWidth < 128);
    if (image.complete) mark(); else image.addEventListener("load", mark);
  }

  // ---- the command can be copied -----------------------------------------------------------------------------
  for (const button of navigator.clipboard ? find(".copy") : []) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // ---- the table sorts and filters ---------------------------------------------------------------------------
  const table = document.getElementById("table");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = find("thead th", table);
  const valueOf = (row, column) => row.cells[column].dataset.sort;

  function sort(column, direction) {
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [valueOf(a, column), valueOf(b, column)];
      if (x === "" || y === "") return (x === "") - (y === ""); // what is not known stands last either way
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return direction === "ascending" ? order : -order;
    });
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
    body.append(...rows);
  }

  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    sort(column, head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
  }));

  const form = document.querySelector(".filter");
  const count = form.querySelector("output");
  const articles = new Map(find("article").map((article) => [article.id, article]));
  const texts = new Map([...articles].map(([id, article]) => [id, article.textContent.replaceAll("\u200b", "").toLowerCase()]));

  function filter() {
    const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of body.rows) {
      const { claim, family, verdict } = row.dataset;
      const fits = (!form.family.value || form.family.value === family) && (!form.verdict.value || form.verdict.value === verdict)
        && words.every((word) => texts.get(claim).includes(word));
      row.hidden = articles.get(claim).hidden = !fits;
      left += fits;
    }
    const all = `${body.rows.length} claim${body.rows.length === 1 ? "" : "s"}`;
    count.textContent = left === body.rows.length ? all : `${left} of ${all}`;
  }

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  function reveal() {
    const target = articles.get(decodeURIComponent(location.hash.slice(1)));
    if (target?.hidden) { form.reset(); filter(); target.scrollIntoView(); }
  }
  addEventListener("hashchange", reveal);
})();
