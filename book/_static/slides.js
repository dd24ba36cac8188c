/* Starts the slides when formulas and figures are there, each as large as its frame allows.
   A classic script, so that a deck opens from disk. Keys: arrows and space, S for the speaker's
   notes, ? for all others. */
(function () {
  "use strict";
  var LARGEST = 1.25;
  var SMALLEST = 0.6;
  var STEP = 0.01;

  function right(element) {
    return element.getBoundingClientRect().right;
  }

  // a formula must end before its number, or before the end of its line
  function tooWide(line) {
    var formula = line.querySelector("mjx-math"), number = line.querySelector(".eqno");
    var end = number ? number.getBoundingClientRect().left - 8 : right(line) + 1;
    return formula !== null && right(formula) > end;
  }

  function tooLarge(box) {
    return (
      box.scrollHeight > box.clientHeight + 1 ||
      box.scrollWidth > box.clientWidth + 1 ||
      Array.prototype.some.call(box.querySelectorAll("div.math"), tooWide)
    );
  }

  function fit(reveal) {
    reveal.classList.add("measuring");
    reveal.querySelectorAll(".fit").forEach(function (box) {
      var scale = LARGEST;
      box.style.setProperty("--scale", scale);
      while (scale > SMALLEST && tooLarge(box)) {
        scale = Math.round((scale - STEP) * 100) / 100;
        box.style.setProperty("--scale", scale);
      }
    });
    reveal.classList.remove("measuring");
  }

  function start() {
    fit(document.querySelector(".reveal"));
    Reveal.initialize({
      width: 1280,
      height: 720,
      margin: 0.02,
      center: false,
      hash: true,
      slideNumber: "c/t",
      transition: "none",
      pdfSeparateFragments: false,
      showNotes: /[?&]with-notes/.test(location.search) ? "separate-page" : false,
      plugins: [RevealNotes],
    });
  }

  var loaded = new Promise(function (resolve) {
    window.addEventListener("load", resolve);
  });
  var typeset = new Promise(function (resolve) {
    window.MathJax = {
      options: { enableMenu: false },
      startup: {
        pageReady: function () {
          return MathJax.startup.defaultPageReady().then(resolve, resolve);
        },
      },
    };
    // without MathJax the slides still run
    document.getElementById("mathjax").addEventListener("error", resolve);
  });
  Promise.all([loaded, typeset]).then(start);
})();
