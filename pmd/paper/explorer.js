// One picture with three panels over the success rate p, drawn again whenever a slider moves.
(() => {
  const root = document.getElementById("explorer"), svg = root.querySelector("svg"), slider = (id) => root.querySelector("#" + id);
  const short = (x) => (x !== 0 && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e4) ? x.toExponential(2) : String(+x.toPrecision(4)));
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const logits = Array.from({ length: 185 }, (_, i) => -9.2 + i / 10);
  const [left, right, height] = [44, 352, 120];
  const x = (logit) => left + ((logit + 9.2) / 18.4) * (right - left);

  // Round numbers that cover [low, high] in four steps or so.
  function ticks(low, high) {
    const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
    return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, i) => (Math.ceil(low / step) + i) * step);
  }

  // A panel: its title, its legend, its lines [class, name, values over `logits`, value at p] and the limits of y.
  function panel(number, title, lines, low, high, at) {
    const top = 52 + number * 192, y = (value) => top + height * (1 - (value - low) / (high - low));
    const inside = (value) => value >= low && value <= high;
    let out = `<clipPath id="panel${number}"><rect x="${left}" y="${top}" width="${right - left}" height="${height}"/></clipPath>`;
    out += `<text x="0" y="${top - 34}" font-weight="600">${title}</text>`;
    lines.forEach(([kind, name], i) => {
      const [column, row] = [4 + (i % 2) * 176, top - 20 + 14 * Math.floor(i / 2)];
      out += `<path class="${kind}" d="M${column} ${row - 4}h26"/><text x="${column + 32}" y="${row}">${name}</text>`;
    });
    for (const value of ticks(low, high))
      out += `<path class="guide" d="M${left} ${y(value)}H${right}"/><text x="${left - 4}" y="${y(value) + 4}" text-anchor="end">${short(value)}</text>`;
    for (const [logit, name] of [[-6.907, "0.001"], [-4.595, "0.01"], [-2.197, "0.1"], [0, "0.5"], [2.197, "0.9"], [4.595, "0.99"], [6.907, "0.999"]])
      out += `<path class="guide" d="M${x(logit)} ${top}v${height}"/><text x="${x(logit)}" y="${top + height + 13}" text-anchor="middle">${name}</text>`;
    out += `<path class="guide here" d="M${x(at)} ${top}v${height}"/>`;
    for (const [kind, , values, here] of lines) {
      const path = values.map((value, i) => `${i ? "L" : "M"}${x(logits[i]).toFixed(1)} ${Math.min(y(value), 1e4).toFixed(1)}`).join("");
      out += `<path class="${kind}" clip-path="url(#panel${number})" d="${path}"/>`;
      if (inside(here)) out += `<circle class="${kind}" cx="${x(at)}" cy="${y(here)}" r="4"/>`;
    }
    return out;
  }

  function draw() {
    const start = performance.now();
    const at = +slider("p").value, p = sigmoid(at), tau = +Math.exp(+slider("tau").value).toPrecision(3), n = +slider("n").value;
    const [means, kls, odds] = [pmd.mean, pmd.partition, (p) => pmd.negative(p, tau, n)].map((f) => logits.map((logit) => f(sigmoid(logit), tau)));
    const [mean, kl, risk] = [pmd.mean(p, tau), pmd.partition(p, tau), pmd.negative(p, tau, n)];
    const line = (kind, name, rows, key, here) => [kind, name, rows.map((row) => row[key]), here[key]];
    const top = Math.max(...kls.map((row) => row.s1)), most = Math.max(...means.map((row) => row.lam));
    const low = -Math.min(1.05 / tau, 2.5 * top), below = (here) => (here.s0 < low ? ", far below" : "");
    svg.innerHTML =
      panel(0, "log ρ, by how much one update changes a response", [
        line("mean", "PMD-mean, right", means, "s1", mean), line("mean wrong", "PMD-mean, wrong" + below(mean), means, "s0", mean),
        line("kl", "KL-PMD, right", kls, "s1", kl), line("kl wrong", "KL-PMD, wrong" + below(kl), kls, "s0", kl),
      ], low, 1.05 * top, at) +
      panel(1, "λ, weight of the χ² term that PMD-mean adds", [
        line("mean", "PMD-mean", means, "lam", mean), line("kl", "KL-PMD: 0", kls, "lam", kl),
      ], 0, 1.05 * most, at) +
      panel(2, `P(λ < 0) when the baseline comes from n = ${n} rollouts`, [
        line("mean", "PMD-mean", odds, "mean", risk), line("kl", "PMD-part", odds, "partition", risk),
      ], 0, 1, at) +
      `<text x="${(left + right) / 2}" y="588" text-anchor="middle">p, the success rate before the update</text>`;
    const rows = [
      ["λ", mean.lam, kl.lam], ["ρ right", Math.exp(mean.s1), Math.exp(kl.s1)], ["ρ wrong", Math.exp(mean.s0), Math.exp(kl.s0)],
      ["p afterwards", mean.pNext, kl.pNext], [`P(λ < 0), PMD-mean and PMD-part, n = ${n}`, risk.mean, risk.partition],
    ];
    root.querySelector("tbody").innerHTML = rows
      .map(([name, ...values]) => `<tr><th scope="row">${name}</th>${values.map((v) => `<td data-value="${v}">${short(v)}</td>`).join("")}</tr>`)
      .join("");
    for (const [id, value] of [["tau", tau], ["p", p], ["n", n]]) {
      root.querySelector(`output[for=${id}]`).textContent = short(value);
      slider(id).setAttribute("aria-valuetext", short(value));
    }
    svg.setAttribute("aria-label", rows.map(([name, a, b]) => `${name}: PMD-mean ${short(a)}, KL-PMD ${short(b)}`).join("; "));
    svg.dataset.milliseconds = performance.now() - start;
  }

  // #tau=-3&p=0&n=16 in the address sets the sliders, in their own units.
  for (const [id, value] of new URLSearchParams(location.hash.slice(1))) if (["tau", "p", "n"].includes(id)) slider(id).value = value;
  root.hidden = false; // without JavaScript it stays hidden
  root.addEventListener("input", draw);
  draw();
})();
