// Measures the frames of the page that it is in, once they are loaded, and writes down what it sees.
const ids = (list) => [...list].map((one) => one.id);
const box = (one) => one.getBoundingClientRect();
function measure(frame) {
  const doc = frame.contentDocument, win = frame.contentWindow, root = doc.documentElement;
  const filter = doc.getElementById("filter");
  const seen = {
    frame: frame.id, width: win.innerWidth, scroll: [root.scrollWidth],
    parts: ids(doc.querySelectorAll("main > section")),
    headings: [...doc.querySelectorAll("h1, h2")].map((one) => one.textContent),
    verdict: doc.querySelector(".verdict strong").textContent,
    members: [...doc.querySelectorAll(".m")].map((one) => one.title.split(" (")[0]),
    scripts: doc.scripts.length, images: doc.images.length, bold: doc.querySelectorAll("b:not(.m > b, .chip > b), i:not(.key)").length,
    text: doc.body.textContent.includes("<b>bold<i>&amp;.c"),
    filter: Boolean(filter && !filter.closest("[hidden]")),
    unnamed: [...doc.querySelectorAll("table")].filter((one) => !one.caption).length,
    broken: [...doc.querySelectorAll("a[href]")].map((one) => one.getAttribute("href"))
      .filter((to) => !to.startsWith("#") || !doc.getElementById(to.slice(1))),
    doubled: ids(doc.querySelectorAll("[id]")).filter((id, at, all) => all.indexOf(id) !== at),
    outside: [], overlaps: [], rows: 0,
  };
  if (seen.filter) {
    filter.value = "no symbol is called that";
    filter.dispatchEvent(new win.Event("input"));
    seen.filtered = doc.querySelectorAll("#symbol-table tbody tr:not([hidden])").length;
    filter.value = "";
    filter.dispatchEvent(new win.Event("input"));
    seen.unfiltered = doc.querySelectorAll("#symbol-table tbody tr:not([hidden])").length;
  }
  for (const part of doc.querySelectorAll("details")) part.open = true;
  seen.scroll.push(root.scrollWidth);
  for (const row of doc.querySelectorAll(".row")) {
    seen.rows += 1;
    const around = box(row.querySelector(".cells")), boxes = [...row.querySelectorAll(".m, .hole")];
    for (const one of boxes) {
      const has = box(one);
      const inside = has.left >= around.left - 0.5 && has.right <= around.right + 0.5 && has.top >= around.top - 0.5 && has.bottom <= around.bottom + 0.5;
      if (!inside || has.width < 1 || has.height < 8) seen.outside.push(one.title);
      for (const other of boxes) {
        const its = box(other);
        const wide = Math.min(has.right, its.right) - Math.max(has.left, its.left);
        const high = Math.min(has.bottom, its.bottom) - Math.max(has.top, its.top);
        if (other !== one && wide > 0.5 && high > 0.5) seen.overlaps.push(one.title + " | " + other.title);
      }
    }
  }
  return seen;
}
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  document.getElementById("seen").textContent = JSON.stringify(frames.map(measure));
});
