// What was chosen on this page before, where the browser keeps it.

export function recall(key) {
  try { return JSON.parse(localStorage.getItem(`gratis-${key}`)); } catch { return null; }
}

export function remember(key, value) {
  try { localStorage.setItem(`gratis-${key}`, JSON.stringify(value)); } catch { /* private browsing, or it is full */ }
}
