"""Clips of any data set: the split without an official one, missing ones."""

import pathlib

import pytest

from data import (
  clips,
)
from data.errors import DataError

from dataset_parts import names, sources


def _clips(*counts_of_sources):
  """For each class, the numbers of clips of its source videos."""
  return [
    clips.Clip(f'{label}/{s}_{k}', pathlib.Path(), label, f's{s}')
    for label, counts in enumerate(counts_of_sources)
    for s, count in enumerate(counts)
    for k in range(count)
  ]


@pytest.mark.parametrize('fraction', [0.05, 0.25, 0.5, 0.95])
def test_split_is_stratified_and_keeps_sources_whole(fraction):
  every = _clips([2] * 20, [1] * 12, [3] * 5)
  train, test, findings = clips.split(every, 'abc', fraction, 1, pathlib.Path())
  assert not findings
  assert sorted(train + test, key=every.index) == every
  assert not sources(train) & sources(test)
  for label, largest in ((0, 2), (1, 1), (2, 3)):
    sides = [[c for c in s if c.label == label] for s in (train, test)]
    wanted = max(round(fraction * len(sides[0] + sides[1])), 1)
    assert 1 <= len(sides[1]) < wanted + largest
    assert len({c.source for c in sides[0]}) >= 2  # one to hold out


def test_the_number_decides_the_split():
  every = _clips([1] * 20, [1] * 20)
  tests = [
    tuple(names(clips.split(every, 'ab', 0.25, k, pathlib.Path())[1]))
    for k in (1, 1, 2, 3)
  ]
  assert tests[0] == tests[1] and len(set(tests)) == 3


def test_a_class_of_two_sources_is_split_by_clip_and_told():
  every = _clips([4, 4], [1] * 8)
  train, test, findings = clips.split(every, 'ab', 0.25, 1, pathlib.Path())
  assert [f.kind for f in findings] == ['source'] and not findings[0].fatal
  assert "class 'a': 8 clips of 2 source videos" in str(findings[0])
  assert len(test) == 4 and len(train) == 12
  dataset = clips.Dataset(('a', 'b'), tuple(train), tuple(test), {})
  parts = clips.partition(dataset, 0.1, 0)
  assert [len(p) for p in parts] == [10, 2, 4]


def test_a_class_of_two_clips_cannot_be_split():
  findings = clips.split(_clips([1, 1]), 'a', 0.25, 1, pathlib.Path())[2]
  assert findings[0].fatal and '2 clips' in findings[0].message


@pytest.mark.parametrize('fraction', [0.0, 1.0, -1, float('nan')])
def test_the_fraction_is_checked(fraction):
  with pytest.raises(DataError, match=r'config\.data\.test_fraction'):
    clips.split(_clips([1] * 9), 'a', fraction, 1, pathlib.Path())


def test_given_validation_clips_are_kept():
  every = _clips([1] * 9)
  dataset = clips.Dataset(
    ('a',), tuple(every[:4]), tuple(every[4:6]), {}, tuple(every[6:])
  )
  parts = clips.partition(dataset, 0.5, 3)
  assert parts == (every[:4], every[6:], every[4:6])


def test_missing_clips_may_be_allowed():
  findings = tuple(
    clips.Finding('missing', f'{k}.avi is missing.', pathlib.Path('l.txt'), k)
    for k in (1, 2)
  )
  dataset = clips.Dataset(('a',), (), (), {'name': 'x'}, findings=findings)
  with pytest.raises(DataError, match='2 listed videos are missing') as error:
    clips.checked(dataset, 'r', 1)
  assert 'l.txt:2: 2.avi is missing.' in str(error.value)
  assert '--config.data.allow_missing=2' in str(error.value)
  allowed = clips.checked(dataset, 'r', 2)
  assert allowed.identity['num_missing'] == 2
  assert not any(f.fatal for f in allowed.findings)
  other = clips.Dataset(('a',), (), (), {'name': 'x'}, findings=findings[:1])
  assert clips.checked(other, 'r', 2).identity != allowed.identity
  moved = tuple(f._replace(path=pathlib.Path('m', 'l.txt')) for f in findings)
  there = clips.Dataset(('a',), (), (), {'name': 'x'}, findings=moved)
  assert clips.checked(there, 'r', 2).identity == allowed.identity
