// The logic of the page: everything is drawn from the JSON in #data, as text nodes and attributes, never as markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const LABELS = { "in-place": "in place", reparametrisation: "reparametrised", ambiguity: "forgery", none: "no attack" };
  const FILTERS = ["family", "access", "class", "defense", "attack"];
  const NOTHING = { family: "", access: "", class: "", defense: "", attack: "", sort: "", down: false };
  const state = { task: 0, cell: "", ...NOTHING };

  // Tables come as columns; see bench/publishing/packing.py.
  function unpack(table) {
    const names = Object.keys(table.columns);
    const of = ({ all, words, codes, values }, i) => (codes ? words[codes[i]] : values ? values[i] : all);
    return Array.from({ length: table.n }, (_, i) => Object.fromEntries(names.map((n) => [n, of(table.columns[n], i)])));
  }
  // Attack and defense, whichever key is judged.
  const setting = (a, d) => `${a.attack} ${a.attack_params} ${d}`;
  const tasks = data.tasks.map((packed) => {
    const one = { ...packed };
    for (const name of ["defenses", "attacks", "cells", "curves"]) one[name] = unpack(packed[name]);
    one.defenses.forEach((d, i) => Object.assign(d, { id: i, rank: i + 1 }));
    one.attacks.forEach((a, i) => Object.assign(a, { id: i, group: a.attack_kind === "removal" ? a.attack_class : a.attack_kind }));
    one.cells.forEach((c, i) => Object.assign(c, { id: i, curve: [] }));
    one.curves.forEach((point) => one.cells[point.cell].curve.push(point));
    one.at = new Map(one.cells.map((c) => [`${c.a} ${c.d}`, c]));
    one.inapplicable = new Map(one.cells.filter((c) => c.verdict === "not applicable").map((c) => [setting(one.attacks[c.a], c.d), c]));
    return one;
  });

  const number = (v) => (v === "-inf" ? -Infinity : v === "inf" ? Infinity : v);
  function fixed(value, digits = 1) {
    const v = number(value);
    if (v === null || v === undefined) return "–";
    if (!Number.isFinite(v)) return v < 0 ? "−∞" : "∞";
    const text = v.toFixed(digits);
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
  }
  const price = (v, bound) => (bound && v === null ? "never" : (bound ? "≥" : "") + fixed(v));
  const percent = (v, digits = 1) => (v === null ? "–" : fixed(100 * v, digits));
  const stateOf = (verdict) => data.states[verdict] || { glyph: "?", style: "void", means: "a verdict that this page does not know" };

  function build(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (typeof value === "function") node.addEventListener(key, value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    const kept = children.flat(2).filter((child) => child !== null && child !== undefined);
    node.append(...kept.map((child) => (child instanceof Node ? child : String(child))));
    return node;
  }
  const el = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);
  const svg = (name, attributes = {}, ...children) => build(document.createElementNS(SVG, name), attributes, children);

  // A label that may be broken between its parts, which no rule of CSS can tell from the middle of a word.
  const named = (label) => String(label).split(/(?=\[)|(?<=[,+])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));

  const task = () => tasks[state.task];
  const has = (text, part) => text.toLowerCase().includes(part.trim().toLowerCase());
  const isOf = (value, wanted) => !wanted || value === wanted;
  const defenses = () => task().defenses.filter((d) =>
    isOf(d.defense_family, state.family) && isOf(d.defense_access, state.access) && has(d.defense_label, state.defense));
  const attacks = () => task().attacks.filter((a) => isOf(a.group, state.class) && has(a.attack_label, state.attack));

  // The ranking: what a column is called, what it says, by what it is sorted (null last, whichever way).
  const PRICES = { price_in_place: "in place", price_reparametrisation: "reparametrised", price_extraction: "extraction", price: "at worst" };
  const share = (part, whole) => (whole ? `${part}/${whole}` : "–");
  const unless = (d, value) => (d.reference ? null : value);
  const COLUMNS = [
    ["rank", "#", (d) => d.rank, (d) => d.rank],
    ["defense", "defense", (d) => d.defense_label, (d) => d.defense_label],
    ["family", "family", (d) => d.defense_family, (d) => d.defense_family],
    ["access", "the check reads", (d) => unless(d, d.defense_access) ?? "–", (d) => d.defense_access],
    ["worth", "worth", (d) => fixed(unless(d, d.worth)), (d) => unless(d, d.worth)],
    ["claim", "claim (log10 p)", (d) => fixed(unless(d, d.log10_p)), (d) => unless(d, number(d.log10_p))],
    ["cost", "accuracy cost", costText, (d) => unless(d, d.accuracy_cost)],
    ["kept", "attacks survived", keptText, (d) => unless(d, d.attacks ? d.survived / d.attacks : null)],
    ...Object.entries(PRICES).map(([name, title]) => [name, `price ${title}`, (d) => price(d[name], d[`${name}_censored`]), (d) => d[name]]),
    ["cheapest", "cheapest removal", (d) => (d.price_censored ? "none below the ceiling" : d.price_attack || "–"), (d) => d.price_attack],
    ["forged", "forged", (d) => share(d.forgeries - d.forgeries_withstood, d.forgeries), (d) => (d.forgeries ? 1 - d.forgeries_withstood / d.forgeries : null)],
    ["false", "false claims", (d) => share(d.false_claims, d.controls), (d) => (d.controls ? d.false_claims / d.controls : null)],
    ["cautions", "to be careful about", (d) => d.cautions.join("; ") || "–", (d) => d.cautions.length],
  ];
  function costText(d) {
    if (d.reference || d.accuracy_cost === null) return "–";
    return fixed(d.accuracy_cost) + (d.accuracy_cost_high === null ? "" : ` ±${fixed(d.accuracy_cost_high - d.accuracy_cost)}`);
  }
  function keptText(d) {
    if (d.reference || !d.attacks) return "–";
    return `${d.survived === d.survived_any ? d.survived : `${d.survived}–${d.survived_any}`}/${d.attacks}`;
  }
  function sorted(rows) {
    const chosen = COLUMNS.find(([key]) => key === state.sort);
    if (!chosen) return rows;
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a === b ? 0 : a - b) * (state.down ? -1 : 1);
    return rows.map((row) => [chosen[3](row), row]).sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return order(a, b);
    }).map(([, row]) => row);
  }
  function ranking() {
    const rows = sorted(defenses());
    const direction = (key) => (key !== state.sort ? "none" : state.down ? "descending" : "ascending");
    const head = COLUMNS.map(([key, title]) => el("th", { scope: "col", "aria-sort": direction(key), "data-column": key },
      el("button", { type: "button", class: "sort", "data-sort": key, click: () => sortBy(key) }, title)));
    const cell = (d, key, text) => (key !== "defense" ? el("td", { "data-column": key }, named(text(d)))
      : el("th", { scope: "row" }, el("button", { type: "button", class: "link", click: () => showDefense(d) }, named(text(d)))));
    const line = (d) => el("tr", { class: d.cautions.length ? "caution" : null }, COLUMNS.map(([key, , text]) => cell(d, key, text)));
    $("ranking").replaceChildren(el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows.map(line)));
    $("ranking-count").textContent = `${rows.length} of ${task().defenses.length} defenses`;
  }
  function sortBy(key) {
    Object.assign(state, { sort: key, down: state.sort === key ? !state.down : false });
    draw();
    document.querySelector(`[data-sort="${key}"]`).focus();
  }

  function matrix() {
    const columns = defenses();
    const rows = attacks();
    const body = [];
    let section = null;
    for (const a of rows) {
      if (a.section !== section) {
        section = a.section;
        body.push(el("tr", { class: "section" }, el("th", { colspan: columns.length + 1, scope: "rowgroup" }, el("span", {}, section))));
      }
      const gain = a.smaller ? el("span", { class: "gain" }, ` ${a.smaller} smaller`) : "";
      body.push(el("tr", {}, el("th", { scope: "row" }, named(a.attack_label), gain), columns.map((d) => cellOf(a, d))));
    }
    const head = el("tr", {}, el("th", { scope: "col" }, "attack"), columns.map((d) => el("th", { scope: "col" }, named(d.defense_label))));
    $("matrix").replaceChildren(el("thead", {}, head), el("tbody", {}, body));
    const first = document.querySelector("#matrix button.cell");
    if (first) first.tabIndex = 0;
    $("matrix-count").textContent = `${rows.length} of ${task().attacks.length} rows, ${columns.length} of ${task().defenses.length} columns`;
  }
  function cellOf(a, d) {
    const c = task().at.get(`${a.id} ${d.id}`);
    if (!c) return absent(a, d);
    const { glyph, style, means } = stateOf(c.verdict);
    const flags = flagsOf(c);
    const label = `${a.attack_label} on ${d.defense_label}: ${c.verdict}, ${c.text}: ${[means, ...flags].join("; ")}`;
    const kind = ["cell", style, flags.length ? "flagged" : ""].join(" ").trim();
    const button = el("button", { type: "button", class: kind, tabindex: -1, "data-cell": c.id, "data-verdict": c.verdict, "aria-label": label, title: label, click: () => open(c) }, `${glyph} ${c.text}`);
    // The cheaper the removal, the stronger its colour.
    const shade = style === "lost" && c.price !== null && c.ceiling ? Math.max(0.35, 1 - c.price / c.ceiling) : 1;
    button.style.setProperty("--shade", `${Math.round(100 * shade)}%`);
    return el("td", {}, button);
  }
  function absent(a, d) {
    // A forgery that does not apply leaves no model on which the owner's key could be judged.
    const one = task().inapplicable.get(setting(a, d.id));
    const [text, title] = d.reference ? ["–", "without a mark there is no key"]
      : one ? [`${stateOf(one.verdict).glyph} ${one.text}`, stateOf(one.verdict).means] : ["not run", "not in the suite"];
    return el("td", { class: "absent" }, el("span", { title }, text));
  }
  function flagsOf(c) {
    const flags = [];
    if (c.seeds && c.seeds_failed) flags.push(`failed in ${c.seeds_failed} of ${c.seeds + c.seeds_failed} seeds`);
    if (c.survived === false && c.survived_any) flags.push("survived in some seeds only");
    if (c.seeds === 1) flags.push("one seed");
    return flags;
  }
  // Arrow keys move through the cells of the matrix; one of them is in the order of the tab key.
  function move(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const from = event.target.closest("button.cell");
    if (!from || !step) return;
    event.preventDefault();
    let row = from.closest("tr");
    let place = from.closest("td").cellIndex;
    let to = null;
    while (!to) {
      if (step[0]) row = step[0] > 0 ? row.nextElementSibling : row.previousElementSibling;
      place += step[1];
      if (!row || place < 1 || (step[1] && place >= row.cells.length)) return;
      to = row.cells[place] ? row.cells[place].querySelector("button.cell") : null;
    }
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }

  // Charts: lines and texts on a frame. What they show stands in a table or a label beside them too.
  function ticks(low, high) {
    const rough = (high - low) / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high + step * 1e-6; i += 1) found.push(Number((i * step).toPrecision(6)));
    return found;
  }
  function span(values) {
    const kept = values.filter((v) => Number.isFinite(v));
    if (!kept.length) return [0, 1];
    const [low, high] = [Math.min(...kept), Math.max(...kept)];
    const margin = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low - margin, high + margin];
  }
  function axes({ title, x, y, xs, ys, height = 220 }) {
    const box = { left: 48, right: 348, top: 14, bottom: height - 42 };
    const [xr, yr] = [span(xs), span(ys)];
    // Infinities stand at the edge.
    const part = (v, [low, high]) => (Math.min(high, Math.max(low, v)) - low) / (high - low);
    const px = (v) => box.left + part(v, xr) * (box.right - box.left);
    const py = (v) => box.bottom - part(v, yr) * (box.bottom - box.top);
    const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
    const text = (at, down, anchor, words, more = {}) => svg("text", { x: at, y: down, "text-anchor": anchor, ...more }, words);
    const middle = (box.top + box.bottom) / 2;
    const root = svg("svg", { viewBox: `0 0 360 ${height}`, class: "chart", role: "group", "aria-label": title },
      svg("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, class: "frame" }),
      ticks(...xr).map((v) => [line(px(v), box.bottom, px(v), box.bottom + 4, "tick"), text(px(v), box.bottom + 15, "middle", v)]),
      ticks(...yr).map((v) => [line(box.left - 4, py(v), box.left, py(v), "tick"), text(box.left - 6, py(v) + 3, "end", v)]),
      text((box.left + box.right) / 2, height - 8, "middle", x), text(10, middle, "middle", y, { transform: `rotate(-90 10 ${middle})` }));
    return { root, px, py, box, line, text };
  }
  const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const dot = (x, y, p) => svg("circle", { cx: x, cy: y, r: 3, class: p.claims ? "claims" : "open" });
  function banded(title, unit, y, points, column, scale, rule) {
    const of = (p, end = "") => number(p[column + end]) * scale;
    const ys = points.flatMap((p) => [of(p), of(p, "_low"), of(p, "_high")]);
    const { root, px, py, box, line, text } = axes({ title, x: unit, y, xs: points.map((p) => p.strength), ys: rule === null ? ys : [...ys, rule] });
    const edge = (end) => points.map((p) => [px(p.strength), py(of(p, end))]);
    root.append(svg("path", { d: `${path([...edge("_high"), ...edge("_low").reverse()])}Z`, class: "band" }), svg("path", { d: path(edge("")), class: "line" }));
    if (rule !== null) root.append(line(box.left, py(rule), box.right, py(rule), "rule"), text(box.left + 4, py(rule) - 4, "start", "alpha: a claim is at or below"));
    root.append(...points.map((p) => dot(px(p.strength), py(of(p)), p)));
    return root;
  }
  function against(points) {
    const xs = points.flatMap((p) => [number(p.log10_p_low), number(p.log10_p_high)]);
    const ys = points.flatMap((p) => [100 * p.accuracy_low, 100 * p.accuracy_high]);
    const { root, px, py, text } = axes({ title: "Accuracy against log10 p, joined in the order of strength", x: "log10 p", y: "accuracy, %", xs, ys });
    const at = (p) => [px(number(p.log10_p)), py(100 * p.accuracy)];
    for (const p of points) {
      const [left, right, high, low] = [px(number(p.log10_p_low)), px(number(p.log10_p_high)), py(100 * p.accuracy_high), py(100 * p.accuracy_low)];
      root.append(svg("rect", { x: left, y: high, width: right - left, height: low - high, class: "band" }));
    }
    root.append(svg("path", { d: path(points.map(at)), class: "line" }));
    for (const p of points) root.append(dot(...at(p), p), text(at(p)[0] + 5, at(p)[1] - 4, "start", p.strength));
    return root;
  }
  function pareto() {
    const rows = defenses().filter((d) => d.verdict === "claim" && d.price !== null && d.accuracy_cost !== null);
    const rest = defenses().filter((d) => !d.reference && !rows.includes(d));
    const better = (one, d) => one.accuracy_cost <= d.accuracy_cost && one.price >= d.price && (one.accuracy_cost < d.accuracy_cost || one.price > d.price);
    const best = rows.filter((d) => !rows.some((one) => better(one, d))).sort((a, b) => a.accuracy_cost - b.accuracy_cost);
    const { root, px, py, text } = axes({ title: "Accuracy cost of protecting against the price of removal", x: "accuracy cost, points (left is better)", y: "price, points (up is better)", xs: rows.map((d) => d.accuracy_cost), ys: rows.map((d) => d.price), height: 260 });
    root.append(svg("path", { d: path(best.map((d) => [px(d.accuracy_cost), py(d.price)])), class: "front" }));
    for (const d of rows) {
      const [x, y] = [px(d.accuracy_cost), py(d.price)];
      const label = `${d.rank}: ${d.defense_label}, cost ${costText(d)}, price ${price(d.price, d.price_censored)}`;
      const mark = d.price_censored ? svg("path", { d: `M${x - 5} ${y + 4}L${x} ${y - 6}L${x + 5} ${y + 4}Z`, class: "dot" }) : svg("circle", { cx: x, cy: y, r: 4.5, class: "dot" });
      const entered = (event) => event.key === "Enter" && showDefense(d);
      root.append(svg("g", { tabindex: 0, role: "button", "aria-label": label, class: best.includes(d) ? "best" : null, click: () => showDefense(d), keydown: entered },
        svg("title", {}, label), mark, text(x + 7, y + 3, "start", d.rank)));
    }
    const names = (list) => list.map((d) => `${d.rank} ${d.defense_label}`).join(", ") || "none";
    $("pareto").replaceChildren(rows.length ? root : el("p", {}, "No defense with a claim and a price."));
    $("pareto-note").textContent = `No other is as good in one and better in the other: ${names(best)}.${rest.length ? ` Not shown, without a claim or a price: ${names(rest)}.` : ""}`;
  }

  function game() {
    const mix = (title, shares) => el("div", {}, el("h4", {}, title), el("ul", {}, Object.entries(shares).sort((a, b) => b[1] - a[1]).map(([label, part]) =>
      el("li", {}, el("meter", { min: 0, max: 1, value: part, "aria-label": label }), ` ${percent(part)} % ${label}`))));
    const against = ({ defense, attack }) => (attack === null ? `${defense} (no attack removes it)` : `${defense} (worst attack: ${attack})`);
    $("game").replaceChildren(...task().games.map((one) => {
      const [title, unit] = one.payoff === "price" ? ["What removing the mark costs the attacker", "points of accuracy"] : ["Whether the mark survives the budget", "chance to survive"];
      const parts = one.seen ? [
        el("p", {}, `If the attacker sees the defense before it chooses: worth ${fixed(one.seen.value, 2)} (${unit}). Best: ${one.seen.best.map(against).join("; ")}.`),
        el("p", {}, `If both choose unseen, each by chance: worth ${fixed(one.unseen.value, 2)}, with these shares.`),
        el("div", { class: "mixes" }, mix("Owner", one.unseen.owner), mix("Attacker", one.unseen.attacker)),
      ] : [el("p", {}, "No game: no defense that claims, or no removal attack.")];
      const words = (word, reasons) => Object.entries(reasons).map(([label, reason]) => el("p", { class: "caution" }, `${word}: ${label} (${reason}).`));
      return el("article", {}, el("h3", {}, title), parts, words("Worth 0", one.worthless), words("Left out", one.left_out));
    }));
  }

  // What stands behind a number.
  function figures(row, hidden) {
    const kept = Object.entries(row).filter(([name, v]) => !hidden.includes(name) && v !== null && v !== undefined && !(Array.isArray(v) && !v.length));
    return el("dl", {}, kept.map(([name, v]) => [el("dt", {}, name), el("dd", {}, Array.isArray(v) ? v.join(", ") : v)]));
  }
  const command = (suites, ...parts) => el("pre", {}, el("code", {}, suites.map((suite) => ["ownbench run", suite, ...parts].join(" ")).join("\n")));
  const careful = (flags) => (flags.length ? el("p", { class: "caution" }, `Careful: ${flags.join("; ")}.`) : null);
  const heading = (text) => el("h3", {}, text);
  function present(title, ...parts) {
    $("detail-title").textContent = title;
    $("detail-body").replaceChildren(...parts.filter(Boolean));
    if (!$("detail").open) $("detail").showModal();
  }
  function table(head, lines) {
    const row = (line) => el("tr", {}, line.map((v) => el("td", {}, v)));
    return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, head.map((h) => el("th", { scope: "col" }, h)))), el("tbody", {}, lines.map(row))));
  }
  function course(c) {
    const head = ["strength", "accuracy, %", "over seeds", "log10 p", "over seeds", "claims"];
    const lines = c.curve.map((p) => [p.strength ?? "–", percent(p.accuracy, 2), `${percent(p.accuracy_low, 2)} to ${percent(p.accuracy_high, 2)}`, fixed(p.log10_p, 2), `${fixed(p.log10_p_low, 2)} to ${fixed(p.log10_p_high, 2)}`, share(p.claims, p.seeds)]);
    const drawn = c.curve.filter((p) => p.strength !== null && p.accuracy !== null && p.log10_p !== null);
    const unit = `strength${c.strength_unit ? ` (${c.strength_unit})` : ""}`;
    const charts = drawn.length < 2 ? null : el("div", { class: "charts" }, banded("Accuracy over strength", unit, "accuracy, %", drawn, "accuracy", 100, null),
      banded("log10 p over strength", unit, "log10 p", drawn, "log10_p", 1, Math.log10(data.alpha)), against(drawn));
    const more = c.curve.length && c.curve[0].left_out ? `${c.curve[0].left_out} more strengths stand in records.parquet. ` : "";
    const how = `${more}Accuracy is a mean over seeds, log10 p a median; bands are the range over seeds; a filled point claims in some seed.`;
    return c.curve.length ? [charts, table(head, lines), el("p", {}, how)] : [];
  }
  function open(c) {
    const [a, d] = [task().attacks[c.a], task().defenses[c.d]];
    state.cell = String(c.id);
    remember();
    const known = c.jobs.length ? `rows of records.parquet with job_id ${c.jobs.join(", ")}${c.jobs_more ? ` and ${c.jobs_more} more` : ""}. After the command above, ownbench show RUN JOB tells of each.` : "no job judged it; its row of records.parquet says why.";
    const whole = { attack: a.attack_label, parameters: a.attack_params, class: a.attack_class, access: a.attack_access, knowledge: a.knowledge, judged_key: a.judged_key, ...c };
    present(`${a.attack_label} on ${d.defense_label}`,
      el("p", { class: "verdict" }, `${stateOf(c.verdict).glyph} ${c.verdict}: ${c.text}; ${stateOf(c.verdict).means}.`),
      careful(flagsOf(c)), c.error ? el("p", { class: "caution" }, `Error: ${c.error}`) : null, ...course(c),
      heading("Made again by"), command(c.suite.split(" + "), d.only, a.only, c.seed_options),
      heading("Records"), el("p", {}, `Suite ${c.suite}; ${known}`),
      heading("All figures"), figures(whole, ["id", "d", "a", "curve", "text", "jobs", "jobs_more", "suite", "seed_options", "error"]));
  }
  function showDefense(d) {
    const mine = task().cells.filter((c) => c.d === d.id);
    const suites = [...new Set(mine.flatMap((c) => c.suite.split(" + ")))];
    const own = mine.find((c) => c.seeds === d.seeds) || mine[0];
    present(`${d.rank}. ${d.defense_label}`, careful(d.cautions), heading("Made again by"), command(suites, d.only, own ? own.seed_options : ""),
      heading("All figures"), figures(d, ["id", "only", "cautions", "defense_label"]));
  }

  function options() {
    const fill = (id, values, every) => $(id).replaceChildren(...["", ...[...new Set(values)].sort()].map((value) => el("option", { value }, value ? LABELS[value] || value : every)));
    fill("family", task().defenses.map((d) => d.defense_family), "all families");
    fill("access", task().defenses.map((d) => d.defense_access), "any access");
    fill("class", task().attacks.map((a) => a.group), "all attacks");
    for (const name of FILTERS) $(name).value = state[name];
    $("facts").textContent = `Accuracy without defense ${percent(task().clean)} %, ${task().seeds} ${task().seeds === 1 ? "seed" : "seeds"}, ${task().cells.length} cells.`;
  }
  // The address keeps what is shown, so that a view can be passed on.
  function remember() {
    const kept = Object.entries(state).filter(([, v]) => v !== "" && v !== false && v !== 0);
    try {
      history.replaceState(null, "", kept.length ? `#${new URLSearchParams(kept)}` : "#");
    } catch {
      // Inside a frame without an address of its own nothing is lost but the link.
    }
  }
  function recall() {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      if (name === "task") state.task = tasks[value] ? Number(value) : 0;
      else if (name === "down") state.down = value === "true";
      else if (name in state) state[name] = value;
    }
  }
  function draw() {
    for (const part of [ranking, matrix, pareto, game, remember]) part();
  }
  function start() {
    recall();
    const shown = state.cell;
    $("task").replaceChildren(...tasks.map((t, i) => el("option", { value: i }, t.task.includes(t.model) ? t.task : `${t.task}, ${t.model}`)));
    $("task").value = String(state.task);
    const again = (changes) => { Object.assign(state, changes); options(); draw(); };
    $("task").addEventListener("change", () => again({ ...NOTHING, task: Number($("task").value) }));
    $("clear").addEventListener("click", () => again(NOTHING));
    for (const name of FILTERS) $(name).addEventListener("input", () => { state[name] = $(name).value; draw(); });
    $("matrix").addEventListener("keydown", move);
    $("detail").addEventListener("close", () => { state.cell = ""; remember(); });
    $("theme").addEventListener("click", () => {
      const { dataset } = document.documentElement;
      const now = dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
      dataset.theme = now === "dark" ? "light" : "dark";
    });
    options();
    draw();
    if (shown !== "" && task().cells[shown]) open(task().cells[shown]);
  }
  if (tasks.length) start();
})();
