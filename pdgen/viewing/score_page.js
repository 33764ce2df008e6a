const task = document.getElementById('task'), verdict = document.getElementById('verdict');
function filter() {
  let shown = 0;
  for (const card of document.querySelectorAll('article')) {
    card.hidden = (task.value && card.dataset.task !== task.value) || (verdict.value && card.dataset.verdict !== verdict.value);
    shown += !card.hidden;
  }
  document.getElementById('shown').textContent = shown + ' shown';
}
if (task) {
  document.querySelector('form').addEventListener('change', filter);
  filter();
}
