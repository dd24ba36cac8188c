// How the search orders what it finds: as Sphinx does, but a theorem's own page before other pages.
var Scorer = {
  score: ([docname, , , , score]) =>
    docname.startsWith("book/theorems/") && score > 5 ? score + 20 : score,
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
