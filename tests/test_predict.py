"""The program predict: videos, live sources, files, mistakes."""

import io
import json
import pathlib
import signal
import subprocess
import sys

import av
import numpy as np
import pytest

from data import decoding, videos
from data.errors import VideoError
from experiments import predict, recognise
from experiments.recognise import VideoRecogniser

import video_files
import video_runs
from video_runs import CLASSES, Stub, untrained


def _call(monkeypatch, capsys, *arguments):
  for name in predict.FLAGS.flag_values_dict():
    predict.FLAGS[name].unparse()
  monkeypatch.setattr(sys, 'argv', ['predict', *map(str, arguments)])
  with pytest.raises(SystemExit) as stop:
    predict.program.run(predict.main, predict.FLAGS, predict.__doc__)
  said = capsys.readouterr()
  return stop.value.code, said.out, said.err


def test_a_live_source_is_recognised_line_by_line(
  video_workdir, video_root, tmp_path, monkeypatch, capsys
):
  path = tmp_path / 'piped.mkv'
  frames = videos.decode(video_root / 'dark' / 'source4_dark_4.avi')
  video_files.write(path, frames, 'ffv1', 'bgr0')
  monkeypatch.setattr(signal, 'signal', lambda *unused: None)
  with io.TextIOWrapper(path.open('rb')) as piped:
    monkeypatch.setattr(sys, 'stdin', piped)
    code, said, error = _call(
      monkeypatch, capsys, f'--workdir={video_workdir}', '--stream=-',
      '--topk=1', '--fps=30',
    )  # fmt: skip
  assert code == 0, error
  *lines, last = [json.loads(line) for line in said.splitlines()]
  assert [line['frame'] for line in lines] == list(range(30))
  recogniser = VideoRecogniser.load(video_workdir)
  expected = recogniser.predict(path)
  assert last['num_frames'] == 30 and len(last['predictions']) == 1
  assert last['predictions'][0]['label'] == expected[0]['label']
  score = pytest.approx(expected[0]['score'], abs=1e-5)
  assert last['predictions'][0]['score'] == score == lines[-1]['score']
  result = predict.recognise(recogniser, path, None)
  told = [s for line in (*lines, last) for s in line['segments']]
  order = lambda s: (s['layer'], s['support'])
  assert [
    {**s, 'score': pytest.approx(s['score'], abs=1e-5)}
    for s in sorted(told, key=order)
  ] == result['segments']


def test_the_program(video_workdir, video_root, tmp_path, monkeypatch, capsys):
  long = video_root / 'dark' / 'source5_dark_5.avi'
  frame = video_runs.clip(np.random.default_rng(1), 0, 1)
  one = video_files.write(tmp_path / 'one.avi', frame)
  bad = tmp_path / 'bad.avi'
  bad.write_bytes(b'RIFF of nothing')
  out = tmp_path / 'out'
  code, said, errors = _call(
    monkeypatch, capsys, f'--workdir={video_workdir}', bad, long, one, long,
    '--json', f'--out={out}', '--topk=1',
  )  # fmt: skip
  assert code == 2 and 'bad.avi' in errors and 'Traceback' not in errors
  results = json.loads(said)
  assert [set(r) >= {'error'} for r in results] == [True, False, False, False]
  assert results[2]['num_frames'] == 1
  assert len(results[1]['predictions']) == 1
  again = {**results[3], 'video': str(long)}
  assert again == results[1]
  assert sorted(p.name for p in out.iterdir()) == [
    'one', 'source5_dark_5', 'source5_dark_5_2',
  ]  # fmt: skip
  for result, name in ((results[1], 'source5_dark_5'), (results[2], 'one')):
    folder = out / name
    assert sorted(p.name for p in folder.iterdir()) == [
      'frames.jsonl', 'overlay.mp4', 'prediction.json', 'segments.json',
    ]  # fmt: skip
    count = result['num_frames']
    assert len(videos.decode(folder / 'overlay.mp4')) == count
    text = (folder / 'frames.jsonl').read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line['frame'] for line in lines] == list(range(count))
    mean = np.mean([line['scores'] for line in lines], axis=0)
    best = result['predictions'][0]
    assert best['score'] == pytest.approx(mean.max(), abs=1e-5)
    assert best['label'] == lines[-1]['label'] == CLASSES[mean.argmax()]
    assert len(lines[0]['attention']) == 49
    assert len(lines[0]['boundaries']) == len(lines[0]['operations']) == 2
    written = json.loads((folder / 'prediction.json').read_text())
    assert written['predictions'] == result['predictions']
    (segments,) = json.loads((folder / 'segments.json').read_text())[
      'results'
    ].values()
    assert segments == result['segments']
    assert segments[-1]['support'][1] == count


def test_what_is_printed_without_json(
  video_workdir, video_root, monkeypatch, capsys
):
  video = video_root / 'dark' / 'source4_dark_4.avi'
  code, said, _ = _call(
    monkeypatch, capsys, video, f'--workdir={video_workdir}', '--state=blocks'
  )
  assert code == 0
  assert '30 frames' in said and ' %  dark' in said and 'layer 2: ' in said


def test_a_stride_shows_every_frame(video_workdir, video_root, tmp_path):
  run = untrained(num_classes=2, **{'data.frame_stride': 4})
  recogniser = VideoRecogniser(run, Stub())
  video = video_root / 'dark' / 'source4_dark_4.avi'
  result = predict.recognise(recogniser, video, tmp_path / 'out')
  assert result['num_frames'] == 30
  assert len(videos.decode(tmp_path / 'out' / 'overlay.mp4')) == 30
  lines = (tmp_path / 'out' / 'frames.jsonl').read_text().splitlines()
  assert [json.loads(x)['frame'] for x in lines] == list(range(0, 30, 4))


def test_a_video_that_breaks_leaves_nothing(tmp_path, bad_worker):
  recogniser = VideoRecogniser(untrained(num_classes=2), Stub())
  video = video_files.write(tmp_path / 'breaks.avi', video_files.shades(30))
  with pytest.raises(VideoError, match='cut after 20'):
    predict.recognise(recogniser, video, tmp_path / 'out' / 'clip')
  assert not list((tmp_path / 'out').iterdir())


def test_a_video_that_ends_its_decoder_is_one_line(
  video_workdir, video_root, tmp_path, bad_worker, monkeypatch, capsys
):
  """And the others are recognised as if it were not there."""
  good = video_root / 'dark' / 'source4_dark_4.avi'
  expected = {
    'crash': 'it ended the decoder (SIGSEGV)',
    'hang': 'no frame in 3 s',
    'memory': 'needs more than 4096 MiB of memory',
    'long': 'more than 40 frames',
    'large': 'frames of 64 x 80: more than 4096 pixels',
  }
  made = []
  for name in expected:
    size = (64, 80) if name == 'large' else (48, 64)
    frames = video_files.shades(50 if name == 'long' else 5, size)
    made += [video_files.write(tmp_path / f'{name}.avi', frames), good]
  limits = decoding.Limits(stall_seconds=3, frames=40)
  monkeypatch.setattr(recognise, 'LIMITS', limits)
  monkeypatch.setenv('BAD_WORKER_MAX_PIXELS', '4096')
  code, said, errors = _call(
    monkeypatch, capsys, f'--workdir={video_workdir}', '--json', *made
  )
  assert code == 2 and 'Traceback' not in errors
  results = json.loads(said)
  for result, again in zip(results[::2], expected):
    assert f'{again}.avi' in result['error'] and '\n' not in result['error']
    assert expected[again] in result['error']
    assert f'error: {result["error"]}\n' in errors
  alone = VideoRecogniser.load(video_workdir).predict(good)
  for result in results[1::2]:
    assert result['num_frames'] == 30
    assert result['predictions'] == alone


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('a.avi',), '--workdir: missing'),
    (('--workdir=none',), 'VIDEO: missing'),
    (('--workdir=none', 'a.avi'), 'holds no run'),
    (('--workdir=none', 'a.avi', '--topk=0'), 'topk'),
    (('--workdir=none', 'a.avi', '--stream=-'), '--stream: one source'),
    (('--workdir=none', '--out=x', '--stream=-'), '--out: not with --stream'),
    (('--workdir=none', 'a.avi', '--top=1'), "Unknown command line flag 'top'"),
  ],
)
def test_mistakes_end_in_one_message(monkeypatch, capsys, arguments, message):
  code, _, error = _call(monkeypatch, capsys, *arguments)
  assert code == 2 and message in error


_MEMORY = """
import pathlib, sys
sys.path[:0] = {paths!r}
import video_runs
from data import decoding
from experiments import predict
from experiments.recognise import LIMITS, VideoRecogniser
def peak(process):
  status = pathlib.Path('/proc', process, 'status').read_text()
  return status.split('VmHWM:')[1].split()[0]
with decoding.Decoders(1, LIMITS) as decoders:
  recogniser = VideoRecogniser(
    video_runs.untrained(), video_runs.Stub(), decoders=decoders
  )
  result = predict.recognise(recogniser, {video!r}, pathlib.Path({out!r}))
  (worker,) = decoders._workers
  decoder = peak(str(worker._process.pid))
print(result['num_frames'], peak('self'), decoder)
"""


@pytest.mark.slow
def test_ten_minutes_take_the_memory_of_one(tmp_path):
  peaks = {}
  for minutes in (1, 10):
    path = tmp_path / f'{minutes}.mp4'
    with av.open(str(path), 'w') as container:
      stream = container.add_stream('libx264', rate=25)
      stream.height, stream.width, stream.pix_fmt = 36, 48, 'yuv420p'
      stream.options = {'preset': 'ultrafast'}
      for t in range(60 * 25 * minutes):
        frame = np.full((36, 48, 3), 40 + t % 150, np.uint8)
        frame[10:20, t % 40 : t % 40 + 8] = 250
        picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
        container.mux(stream.encode(picture))
      container.mux(stream.encode())
    out = tmp_path / f'out_{minutes}'
    tests = pathlib.Path(__file__).parent
    program = _MEMORY.format(
      paths=[str(tests), str(tests.parent)], video=str(path), out=str(out)
    )
    done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, *kilobytes = map(int, done.stdout.split()[-3:])
    assert count == 60 * 25 * minutes
    assert len(list(videos.stream(out / 'overlay.mp4', []))) == count
    peaks[minutes] = np.array(kilobytes) / 1024
  print(f'peak MiB by minutes, with its decoder: {peaks}')
  assert (peaks[10] < peaks[1] + 64).all()
