// The threshold and the prevalence, moved by hand: what the test set says of each, recomputed from its probabilities.
"use strict";
(() => {
  const element = (id) => document.getElementById(id);
  const held = element("scores");
  if (!held) return;
  const { malignant, benign, frozen, here, prevalence: own } = JSON.parse(held.textContent); // both lists fall
  const state = { threshold: frozen, prevalence: own };

  // How many of a falling list reach the threshold.
  const reaching = (falling, threshold) => {
    let [low, high] = [0, falling.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (falling[middle] >= threshold) low = middle + 1;
      else high = middle;
    }
    return low;
  };

  // In the order in which Python computes them: so both round to the same digits.
  const figures = (threshold, prevalence) => {
    const found = reaching(malignant, threshold), alarms = reaching(benign, threshold);
    const missed = malignant.length - found, cleared = benign.length - alarms;
    const [ofMalignant, ofBenign] = // how much one image counts for
      prevalence === here ? [1, 1] : [prevalence / malignant.length, (1 - prevalence) / benign.length];
    const ppv = (found * ofMalignant) / (found * ofMalignant + alarms * ofBenign);
    return {
      sensitivity: found / malignant.length, specificity: cleared / benign.length, ppv,
      npv: (cleared * ofBenign) / (cleared * ofBenign + missed * ofMalignant), number_needed_to_biopsy: 1 / ppv,
      precision: found / (found + alarms), counts: { found, alarms },
    };
  };

  // One decimal. A tie goes to the even digit, as in Python; toFixed would take the larger one.
  const tenths = (value) => (value % 1 === 0.25 ? value - 0.01 : value).toFixed(1);
  const percent = (value) => (Number.isFinite(value) ? `${tenths(100 * value)}%` : "undefined");
  const times = (value) => (Number.isFinite(value) ? tenths(value) : "undefined");
  const short = (value) => String(Number(value.toPrecision(4)));

  // A mark over a plot, at a point in the units of its axes; without y, a line through all of it.
  const place = (id, x, y) => {
    const plot = element(id);
    if (!plot) return;
    const [left, bottom, right, top, x0, y0, x1, y1] = plot.dataset.frame.split(" ").map(Number);
    let mark = plot.querySelector(".mark");
    if (!mark) {
      mark = document.createElementNS("http://www.w3.org/2000/svg", y === undefined ? "rect" : "circle");
      mark.setAttribute("class", "mark");
      plot.append(mark);
    }
    mark.style.display = Number.isNaN(x) || Number.isNaN(y) ? "none" : "";
    const across = left + ((right - left) * (x - x0)) / (x1 - x0);
    const up = bottom + ((top - bottom) * (y - y0)) / (y1 - y0);
    const where = y === undefined
      ? { x: across - 0.75, y: top, width: 1.5, height: bottom - top }
      : { cx: across, cy: up, r: 4.5 };
    if (mark.style.display === "") for (const [name, value] of Object.entries(where)) mark.setAttribute(name, value);
  };

  const show = () => {
    const { threshold, prevalence } = state, now = figures(threshold, prevalence);
    for (const name of ["sensitivity", "specificity", "ppv", "npv", "number_needed_to_biopsy"]) {
      const output = element(`now-${name}`);
      output.value = name === "number_needed_to_biopsy" ? times(now[name]) : percent(now[name]);
      output.dataset.value = now[name];
    }
    const [hit, alarm] = [prevalence * now.sensitivity, (1 - prevalence) * (1 - now.specificity)];
    const people = (share) => Math.round(1000 * share);
    const malignantOnes = people(prevalence), found = Math.min(people(hit), malignantOnes);
    element("said").textContent =
      `Of 1,000 lesions, ${malignantOnes} are malignant: ${found} are found and ${malignantOnes - found} missed. ` +
      `Of the ${1000 - malignantOnes} benign ones, ${Math.min(people(alarm), 1000 - malignantOnes)} are called ` +
      `malignant. (Test set: ${now.counts.found} of ${malignant.length} malignant found, ${now.counts.alarms} of ` +
      `${benign.length} benign called malignant.)`;
    for (const [name, share] of Object.entries({ found: hit, missed: prevalence - hit, alarm })) {
      element(`people-${name}`).style.width = `${100 * share}%`;
    }
    element("threshold-slider").setAttribute("aria-valuetext", short(threshold));
    element("prevalence-slider").setAttribute("aria-valuetext", percent(prevalence));
    place("roc", 1 - now.specificity, now.sensitivity);
    place("precision-recall", now.sensitivity, now.precision);
    place("spread", threshold);
  };

  // A slider and a field for one number; `unit` is what the number is shown in.
  const bind = (name, unit, allowed) => {
    const [slider, field] = [element(`${name}-slider`), element(`${name}-field`)];
    const write = (value, ...targets) => targets.forEach((target) => { target.value = short(value / unit); });
    slider.addEventListener("input", () => { state[name] = Number(slider.value) * unit; write(state[name], field); show(); });
    field.addEventListener("input", () => {
      const value = Number(field.value) * unit;
      const valid = field.value !== "" && allowed(value);
      field.setAttribute("aria-invalid", String(!valid));
      if (valid) { state[name] = value; write(value, slider); show(); }
    });
    document.querySelectorAll(`button[data-${name}]`).forEach((button) => button.addEventListener("click", () => {
      state[name] = Number(button.dataset[name]);
      field.setAttribute("aria-invalid", "false");
      write(state[name], slider, field);
      show();
    }));
    write(state[name], slider, field);
  };

  bind("threshold", 1, (value) => value >= 0 && value <= 1);
  bind("prevalence", 0.01, (value) => value > 0 && value < 1);
  document.querySelectorAll(".needs-script").forEach((part) => { part.hidden = false; });
  document.querySelectorAll(".without-script").forEach((part) => { part.hidden = true; });
  show();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
})();
