"""The equations as plain NumPy loops, float64, one number at a time.

Written from the papers' equations and not from the library: the second
witness of every test of the mathematics. Slow and obvious on purpose.
"""

import math

import numpy as np

# --- elementary functions ---------------------------------------------------


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-np.asarray(x, np.float64)))


def softmax(x):
  x = np.asarray(x, np.float64)
  e = np.exp(x - x.max())
  return e / e.sum()


def softplus(x):
  return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def layer_norm(v, epsilon=1e-6):
  v = np.asarray(v, np.float64)
  return (v - v.mean()) / math.sqrt(v.var() + epsilon)


# --- HM-LSTM: Chung et al. eq. 1-6, HM-AN eq. 1-11 --------------------------


def hm_lstm_step(
  layers, c, h, z, x, *, detect, identity=False, zero_copied=False
):
  """One step of one clip.

  layers: list of dicts W, U, V (None on top), b, w_z, u_z, v_z, b_z (None
    without a detector), scale, shift (None without layer norm); gate order
    i, f, o, g. c, h: lists of vectors; z: list of numbers; x: vector.
  detect: function (layer index, logit) -> (z, probability).
  Returns c, h, z, probabilities, operations.
  """
  num_layers = len(layers)
  new_c, new_h, new_z, probs, operations = [], [], [], [], []
  below, z_below = np.asarray(x, np.float64), 1.0
  for l in range(num_layers):
    p = layers[l]
    size = len(h[l])
    s = p['b'] + h[l] @ p['U'] + z_below * (below @ p['W'])
    if l + 1 < num_layers:
      s = s + z[l] * (h[l + 1] @ p['V'])
    if p.get('scale') is not None:
      s = np.concatenate(
        [layer_norm(s[k * size : (k + 1) * size]) for k in range(4)]
      )
      s = s * p['scale'] + p['shift']
    i, f, o = (sigmoid(s[k * size : (k + 1) * size]) for k in range(3))
    g = np.tanh(s[3 * size :])
    flush = i * g
    update = f * c[l] + i * g
    c_l = z[l] * flush + (1 - z[l]) * (z_below * update + (1 - z_below) * c[l])
    copying = (1 - z[l]) * (1 - z_below)
    shown = c_l if identity else np.tanh(c_l)
    h_l = copying * h[l] + (1 - copying) * o * shown
    if p['b_z'] is None:
      z_l, prob = 0.0, 0.0
    else:
      a = p['b_z'] + h[l] @ p['u_z'] + z_below * (below @ p['w_z'])
      if l + 1 < num_layers:
        a += z[l] * (h[l + 1] @ p['v_z'])
      z_l, prob = detect(l, a)
    if zero_copied:
      z_l = z_l * (1 - copying)
    operations.append(2 if z[l] > 0.5 else 1 if z_below > 0.5 else 0)
    new_c.append(c_l)
    new_h.append(h_l)
    new_z.append(z_l)
    probs.append(prob)
    below, z_below = h_l, z_l
  return new_c, new_h, new_z, probs, operations


def gumbel_boundary(a, noise, temperature):
  """HM-AN eq. 9-11: z = 1[sigmoid((a + e) / tau) > 1/2]."""
  return float(sigmoid((a + noise) / temperature) > 0.5), float(sigmoid(a))


def hard_sigmoid_boundary(a, slope):
  soft = max(0.0, min(1.0, (slope * a + 1.0) / 2.0))
  return float(soft > 0.5), soft


# --- LSTM -------------------------------------------------------------------


def lstm_step(layers, c, h, x):
  new_c, new_h = [], []
  below = np.asarray(x, np.float64)
  for l, p in enumerate(layers):
    size = len(h[l])
    s = p['b'] + below @ p['W'] + h[l] @ p['U']
    i, f, o = (sigmoid(s[k * size : (k + 1) * size]) for k in range(3))
    g = np.tanh(s[3 * size :])
    c_l = f * c[l] + i * g
    new_c.append(c_l)
    new_h.append(o * np.tanh(c_l))
    below = new_h[-1]
  return new_c, new_h


# --- attention: HM-AN eq. 12-21 ---------------------------------------------


def position_code(name, num_locations):
  side = math.isqrt(num_locations)
  rows = []
  for n in range(num_locations):
    r, q = n // side, n % side
    code = []
    if name == 'onehot':
      code = [float(k == r) for k in range(side)]
      code += [float(k == q) for k in range(side)]
    elif name == 'sincos':
      for u in (r, q):
        for j in range(3):
          code.append(math.sin(math.pi * 2**j * u / side))
          code.append(math.cos(math.pi * 2**j * u / side))
    rows.append(code)
  return np.array(rows, np.float64).reshape(num_locations, -1)


def location_logits(W, b, h):
  return h @ W + b


def content_logits(W_x, W_p, W_d, b, u, X, code, h):
  logits = []
  for X_i, p_i in zip(X, code):
    hidden = X_i @ W_x + h @ W_d + b
    if len(p_i):
      hidden = hidden + p_i @ W_p
    logits.append(float(u @ np.tanh(hidden)))
  return np.array(logits)


def adaptive_temperature(w, b, h):
  return 1.0 / (softplus(float(w @ h + b)) + 1.0)


def entropy(logits):
  p = softmax(logits)
  return -float(sum(p_i * math.log(p_i) for p_i in p if p_i > 0))


# --- heads ------------------------------------------------------------------


def gated_embedding(gates, embeddings, W, b, hs):
  """Chung et al.: g_l = sigmoid(w_l . [h^1..h^L]), relu(sum_l g_l W_l h^l)."""
  joint = np.concatenate(hs)
  total = 0.0
  for l, h in enumerate(hs):
    total = total + sigmoid(joint @ gates[:, l]) * (h @ embeddings[l])
  return np.maximum(total, 0.0) @ W + b


# --- losses: HM-AN eq. 14-19, 22 --------------------------------------------


def log_softmax(x):
  x = np.asarray(x, np.float64)
  m = x.max()
  return x - m - math.log(sum(math.exp(v - m) for v in x))


def cross_entropy(logits, label, valid, smoothing=0.0):
  total = 0.0
  for t in range(len(logits)):
    if valid[t]:
      lp = log_softmax(logits[t])
      total -= (1 - smoothing) * lp[label] + smoothing * lp.mean()
  return total


def reward(logits, label, valid):
  values = [log_softmax(x)[label] for x, v in zip(logits, valid) if v]
  return sum(values) / len(values)


def rewards_to_go(logits, label, valid):
  out = []
  for t in range(len(logits)):
    later = [
      log_softmax(logits[s])[label] for s in range(t, len(logits)) if valid[s]
    ]
    out.append(sum(later) / len(later) if valid[t] else 0.0)
  return np.array(out)


def reinforce_loss(
  log_prob, entropies, rewards, baseline, valid, weight, bonus
):
  total = 0.0
  for t in range(len(log_prob)):
    if valid[t]:
      total -= weight * (rewards[t] - baseline) * log_prob[t]
      total -= bonus * entropies[t]
  return total


def doubly_stochastic(weights, valid):
  num_steps, num_locations = sum(valid), weights.shape[1]
  total = 0.0
  for i in range(num_locations):
    seen = sum(weights[t, i] for t in range(len(valid)) if valid[t])
    total += (num_steps / num_locations - seen) ** 2
  return total
