// A page opened from disk may not read other pages, so search shows titles there, without excerpts.
if (window.location.protocol === "file:") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// What is wider than its place scrolls inside itself; a keyboard must reach it to scroll it.
const WIDE = [
  'mjx-container[display="true"]',
  ".pst-scrollable-table-container",
  "div.text_html",
  "div.math",
  ".bd-article p",
  ".bd-article pre",
].join(",");

function letKeyboardScroll() {
  for (const place of document.querySelectorAll(WIDE)) {
    if (place.scrollWidth > place.clientWidth) {
      place.tabIndex = 0;
      if (!place.matches("p, pre")) {
        place.setAttribute("role", "group");
        place.setAttribute("aria-label", "Scrolls sideways");
      }
      place.dataset.wide = "";
    } else if ("wide" in place.dataset) {
      for (const name of ["tabindex", "role", "aria-label", "data-wide"]) place.removeAttribute(name);
    }
  }
}

window.addEventListener("load", async () => {
  if (window.MathJax?.startup) await MathJax.startup.promise;
  await document.fonts.ready;
  letKeyboardScroll();
  // the text changes its size when the window or a sidebar does, and when something unfolds
  let waiting = 0;
  const later = () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(letKeyboardScroll);
  };
  const text = document.querySelector(".bd-article");
  if (text) new ResizeObserver(later).observe(text);
});

// Print in light colours, with the proofs unfolded; then put back what was there.
const toRestore = [];

window.addEventListener("beforeprint", () => {
  const page = document.documentElement;
  const theme = page.dataset.theme;
  page.dataset.theme = "light";
  toRestore.push(() => (page.dataset.theme = theme));
  for (const fold of document.querySelectorAll("details.sd-dropdown:not(.hint, [open])")) {
    fold.open = true;
    toRestore.push(() => (fold.open = false));
  }
});

window.addEventListener("afterprint", () => {
  while (toRestore.length) toRestore.pop()();
});
