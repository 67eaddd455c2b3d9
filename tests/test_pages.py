"""The pages as a reader sees them: opened in a browser, wide and narrow, light and dark, printed."""

import json
import shutil

import pytest

from fairgrpo_jax import report
from fairgrpo_jax.audit import command
from tests import browser, run_folder


pytestmark = pytest.mark.slow
WIDTHS = (1400, 800, 390)
EVIL = ("<script>document.title = 'taken'</script>", "</style><b id='taken'>bold</b>", "</pre><img src=x onerror=1>")
SECTIONS = {
    "training": ["summary", "what", "curves", "groups", "fairness", "samples", "method"],
    "audit": ["model-1", "model-2", "compared", "checklist", "method"],
    "seeds": ["seeds", "model-1", "model-2", "method"],
}
# Elements that reach over the right edge, but for what stands in boxes that scroll.
OVER = """[...document.querySelectorAll('body *')].filter(e => !e.parentElement.closest('.scroll, figure')
  && e.getBoundingClientRect().right > WIDTH + 1).map(e => e.tagName + '.' + e.className).join(' ')"""
# The least contrast (WCAG) of text with its ground.
CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor
    if (!c.startsWith('rgba')) return c } return 'rgb(255, 255, 255)' }
  let least = [99, '']
  for (const e of document.querySelectorAll('p, li, td, th, small, h1, h2, h3, h4, a, pre, summary, span')) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x)
    const ratio = (a + 0.05) / (b + 0.05)
    if (ratio < least[0]) least = [ratio, e.tagName + ': ' + e.textContent.trim().slice(0, 40)] }
  return least })()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A training report of two runs, an audit of both with examples of wrong answers, and one of both as seeds."""
    root = tmp_path_factory.mktemp("pages")
    runs = {
        name: run_folder.write(root / name, seed=seed, gain=0.3 * seed, evaluations=2)
        for seed, name in enumerate(("grpo", "fair"))
    }
    for folder in runs.values():
        for path in [*(folder / "evals").iterdir(), *(folder / "samples").glob("*.json")]:
            text = path.read_text()
            text = text.replace("\\\\boxed", f"{json.dumps(' '.join(EVIL))[1:-1]}\\\\boxed")
            path.write_text(text)
    shared = ["--resamples", "100", "--permutations", "100", "--adjust", "none"]
    both = [str(folder) for folder in runs.values()]
    made = {"training": report.build(runs, root / "training.html", title="Two runs " + EVIL[0])}
    command.main([*both, *shared, "--checklist", "tripod", "--title", EVIL[1], "--out", str(root / "audit")])
    command.main([*both, *shared, "--pool", "--out", str(root / "seeds")])
    return made | {name: root / name / "report.html" for name in ("audit", "seeds")}


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_fits_and_complains_of_nothing(tab, pages, name, width, dark):
    tab.complaints.clear()
    tab.open(pages[name], width=width, dark=dark)
    assert tab.value("document.title") not in ("taken", "") and not tab.value(
        "document.querySelector('#taken') != null"
    )
    for section in SECTIONS[name]:
        assert tab.value(f"document.getElementById('{section}')?.getBoundingClientRect().height") > 40, section
    assert tab.value(OVER.replace("WIDTH", str(width))) == ""
    assert tab.value("document.documentElement.scrollWidth") <= width
    ratio, where = tab.value(CONTRAST)
    assert ratio >= 4.5, where
    assert tab.complaints == []


@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_prints(tab, pages, name):
    """In dark surroundings too, dark on white, and no wider than the paper."""
    tab.complaints.clear()
    tab.open(pages[name], width=750, dark=True, media="print")
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.printed().startswith(b"%PDF") and tab.complaints == []


@pytest.mark.parametrize("name", ["training", "audit"])
def test_what_a_model_says_is_shown_as_text(tab, pages, name):
    tab.open(pages[name], width=1400)
    said = tab.value("document.body.textContent")
    assert all(evil in said for evil in (EVIL if name == "audit" else (*EVIL[:1], "<script>alert('x')</script>")))
    assert tab.value("document.querySelectorAll('script').length") == (1 if name == "training" else 0)


def test_a_browser_that_fails_is_seen(tab, tmp_path):
    """The check itself: a page that is too wide, unreadable, and whose script fails."""
    bad = tmp_path / "bad.html"
    bad.write_text("<body><p style='width: 900px; color: #ccc'>wide</p><script>nobody()</script>")
    tab.complaints.clear()
    tab.open(bad, width=390)
    assert tab.value(OVER.replace("WIDTH", "390")) != "" and tab.value(CONTRAST)[0] < 2
    assert "nobody is not defined" in tab.complaints[0]


def test_without_a_browser_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"), browser.tab(tmp_path):
        pass
