"""The report's page in a real browser, from disk, with the network off."""

import os
import pathlib
import shutil
import time
from collections.abc import Callable

import pytest

from experiments import report

import untrained_runs

pytestmark = pytest.mark.slow

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
MAX_SECONDS = 3.0
PHONE = {'width': 390, 'height': 844}


@pytest.fixture(scope='module')
def page_file(tmp_path_factory):
  """A page of 200 clips."""
  folder = tmp_path_factory.mktemp('report')
  workdir = untrained_runs.make(folder / 'run', **{'data.num_test': 200})
  page = report.render(report.collect(workdir, 200))
  (folder / 'report.html').write_text(page, encoding='utf-8')
  return folder / 'report.html'


@pytest.fixture(scope='module')
def browser():
  sync_api = pytest.importorskip(
    'playwright.sync_api', reason='needs playwright: pip install -e .[browser]'
  )
  path = next(filter(None, map(shutil.which, BROWSERS)), None)
  if path is None:
    pytest.skip(f'needs a browser: one of {", ".join(BROWSERS)}')
  # Chromium's sandbox does not run as root.
  arguments = ['--no-sandbox'] if os.geteuid() == 0 else []
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path, args=arguments)
    yield browser
    browser.close()


class Opened:
  """A page, and everything it complained of or asked for."""

  def __init__(self, browser, path: pathlib.Path, **options):
    self.context = browser.new_context(offline=True, **options)
    self.page = self.context.new_page()
    self.messages, self.requests = [], []
    self.page.on('console', lambda m: self.messages.append(m.text))
    self.page.on('pageerror', lambda e: self.messages.append(str(e)))
    self.page.on('request', lambda r: self.requests.append(r.url))
    start = time.perf_counter()
    self.page.goto(path.as_uri())
    self.until(lambda: self.text('#now') != '')
    self.seconds = time.perf_counter() - start

  def until(self, condition: Callable[[], bool]) -> None:
    # The page's policy forbids the browser's own way of waiting.
    end = time.perf_counter() + 30
    while not condition():
      assert time.perf_counter() < end, 'waited for 30 s'
      self.page.wait_for_timeout(20)

  def text(self, selector: str) -> str:
    return self.page.locator(selector).inner_text()

  def frame(self) -> int:
    return int(self.text('#now').split()[1])

  def picture(self) -> str:
    self.page.wait_for_timeout(50)
    return self.page.evaluate('document.getElementById("frame").toDataURL()')


@pytest.fixture
def opened(browser, page_file):
  """An open page; nothing may have gone wrong with it at the end."""
  shown = Opened(browser, page_file, viewport={'width': 1280, 'height': 900})
  yield shown
  assert shown.messages == []
  assert all(u.startswith(('file:', 'data:')) for u in shown.requests)
  shown.context.close()


def test_200_clips_open_soon(browser, page_file):
  seconds = []
  for _ in range(3):  # the best of them: the machine may be busy otherwise
    shown = Opened(browser, page_file)
    seconds.append(shown.seconds)
    assert shown.page.locator('#list li').count() == 200
    assert opened_cleanly(shown)
  assert min(seconds) < MAX_SECONDS


def test_scrubbing_moves_everything(opened):
  page = opened.page
  page.wait_for_timeout(200)
  first = opened.picture()
  scrubber = page.locator('#scrubber')
  scrubber.fill('7')
  assert opened.frame() == 7
  assert opened.picture() != first
  assert scrubber.get_attribute('aria-valuetext').startswith('Frame 7 of')
  scrubber.press('ArrowRight')
  assert opened.frame() == 8
  scrubber.press('End')
  assert opened.frame() == int(scrubber.get_attribute('max'))
  scrubber.press('Home')
  assert opened.frame() == 0
  assert opened.picture() == first


def test_a_click_on_a_band_goes_there(opened):
  page = opened.page
  steps = int(page.locator('#scrubber').get_attribute('max')) + 1
  page.locator('#timeline').scroll_into_view_if_needed()
  svg = page.locator('#timeline svg').bounding_box()
  band = page.locator('#timeline rect.UPDATE').first.bounding_box()
  left, width = svg['x'] + 46, svg['width'] - 48
  for t in (0, 5, steps - 1):
    x = left + (t + 0.5) * width / steps
    page.mouse.click(x, band['y'] + band['height'] / 2)
    assert opened.frame() == t
  page.mouse.move(left + 2.5 * width / steps, band['y'])
  page.mouse.down()
  page.mouse.move(left + 9.5 * width / steps, band['y'])
  page.mouse.up()
  assert opened.frame() == 9


def test_the_attention_can_be_hidden(opened):
  opened.page.wait_for_timeout(200)
  shown = opened.picture()
  opened.page.locator('#overlay').uncheck()
  hidden = opened.picture()
  assert hidden != shown
  opened.page.locator('#overlay').check()
  assert opened.picture() == shown


def test_keys(opened):
  page = opened.page
  names = page.locator('#list button > span:last-child').all_inner_texts()
  page.keyboard.press('j')
  assert opened.text('#clip-name') == names[1].split('\n')[0]
  page.keyboard.press('k')
  page.keyboard.press('k')  # from the first to the last
  assert opened.text('#clip-name') == names[-1].split('\n')[0]
  page.keyboard.press('ArrowRight')
  page.keyboard.press('ArrowRight')
  page.keyboard.press('ArrowLeft')
  assert opened.frame() == 1
  page.keyboard.press(' ')
  assert opened.text('#play') == 'Pause'
  opened.until(lambda: opened.frame() > 3)
  page.keyboard.press(' ')
  assert opened.text('#play') == 'Play'
  stopped = opened.frame()
  page.wait_for_timeout(300)
  assert opened.frame() == stopped


def test_clips_are_browsed_by_their_result(opened):
  page = opened.page
  total = 0
  for result in ('right', 'wrong'):
    page.locator('#by-result').select_option(result)
    listed = page.locator('#list li')
    total += listed.count()
    assert page.locator(f'#list span.{result}').count() == listed.count()
    if listed.count():
      assert page.locator('#list [aria-current]').count() == 1
  assert total == 200
  page.locator('#by-result').select_option('all')
  cell = page.locator('#matrix button').first
  count = int(cell.inner_text())
  cell.click()
  assert page.locator('#list li').count() == count
  assert opened.text('#count').startswith(f'{count} clips')


def test_the_table_is_sorted(opened):
  page = opened.page
  table = page.locator('#per-class')

  def column(number):
    cells = table.locator(f'tbody tr > :nth-child({number})')
    return cells.all_inner_texts()

  def numbers():
    return [float(v.split()[0]) for v in column(6)]

  classes = column(1)
  head = table.get_by_role('columnheader', name='Average precision')
  head.get_by_role('button').click()
  assert head.get_attribute('aria-sort') == 'descending'
  assert numbers() == sorted(numbers(), reverse=True)
  head.get_by_role('button').press('Enter')
  assert head.get_attribute('aria-sort') == 'ascending'
  assert numbers() == sorted(numbers())
  name = table.get_by_role('columnheader', name='Class')
  name.get_by_role('button').click()
  assert column(1) == sorted(classes)
  assert head.get_attribute('aria-sort') == 'none'


def test_themes(browser, page_file):
  background = 'getComputedStyle(document.body).backgroundColor'
  seen = {}
  for scheme in ('light', 'dark'):
    shown = Opened(browser, page_file, color_scheme=scheme)
    seen[scheme] = [shown.page.evaluate(background)]
    for _ in range(2):
      shown.page.locator('#theme').click()
      seen[scheme].append(shown.page.evaluate(background))
    assert opened_cleanly(shown)
  light, dark = seen['light'][0], seen['dark'][0]
  assert light != dark
  assert seen == {'light': [light, light, dark], 'dark': [dark, light, dark]}


def test_a_phone_scrolls_one_way_only(browser, page_file):
  shown = Opened(browser, page_file, viewport=PHONE, has_touch=True)
  width = shown.page.evaluate('document.documentElement.scrollWidth')
  assert width <= PHONE['width']
  for selector in ('#play', '#next', '#theme', '#by-result'):
    assert shown.page.locator(selector).bounding_box()['height'] >= 36
  shown.page.locator('#next').tap()
  assert shown.frame() == 0
  assert opened_cleanly(shown)


def opened_cleanly(shown: Opened) -> bool:
  shown.context.close()
  return shown.messages == []


def test_everything_has_a_name_for_a_screen_reader(opened):
  unnamed = opened.page.evaluate(
    """() => [...document.querySelectorAll(
         'button, select, input, canvas, svg[role=img], [role=region]')]
       .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() ||
                        e.labels?.length))
       .map((e) => e.outerHTML)"""
  )
  assert unnamed == []
  timeline = opened.page.locator('#timeline svg').get_attribute('aria-label')
  assert 'layer 1:' in timeline and 'true boundaries at frames' in timeline
  chart = opened.page.locator('#charts svg[role=img]').first
  assert chart.get_attribute('aria-label').startswith('Loss against the step')
