// Before anything is drawn, so that the page does not change its colours under one's eyes.
const chosen = localStorage.getItem("theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
