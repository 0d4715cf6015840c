"""Every field of a recipe, with the paper's values unless the comment says not.

Other recipes give differences only. Values are checked once at start, by
`experiments/config.py`. "Paper" is HM-AN, arXiv 1708.07590.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The paper's recipe for HM-AN with adaptive Gumbel-softmax attention."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # parameters, order of clips, noise; >= 0

  data = config.data = ml_collections.ConfigDict()
  # hmdb51, ucf_sports, olympic_sports, video_folder, or composite_actions
  # (generated)
  data.name = 'hmdb51'
  data.root = ''  # folder with the videos and the split lists
  # Feature extractor of videos: efficientnet_lite0, resnet152 (paper), or none,
  # which is the pixels of 7 x 7 cells
  data.features = 'efficientnet_lite0'
  data.weights = ''  # file of resnet152's; '' is Keras' own of ImageNet
  data.features_dir = ''  # store of features; '' is ~/.cache/hman_jax/features
  # Of features on disk: float16, or int8 with a scale for each channel
  data.store_dtype = 'float16'
  # Videos that cannot be decoded: error (all of them are named), or skip
  data.on_bad_video = 'error'
  # Lists of video_folder: files of lines "path label", paths below data.root;
  # '' is none: class folders, or no such side
  data.train_list = ''
  data.validation_list = ''
  data.test_list = ''
  data.label_map = ''  # of video_folder: file of class names; '' is as found
  data.split = 1  # 1..3: the official one, or the seed of a random one
  data.test_fraction = 0.25  # of a random split
  data.allow_missing = 0  # listed videos that may be missing
  data.num_frames = 60  # T, frames of a training window and of a block
  data.frame_stride = 1  # take every n-th frame
  # Frames a second to take of a video, by the times of its frames, so that
  # videos of several or varying rates are alike; 0: every frame
  data.fps = 0.0
  data.validation_fraction = 0.1  # of the training videos, by source video
  data.num_train = 4096  # clips of composite_actions
  data.num_validation = 512  # clips of composite_actions
  data.num_test = 1024  # clips of composite_actions

  model = config.model = ml_collections.ConfigDict()
  # hm_soft, hm_reinforce, hm_gumbel, hm_gumbel_adaptive, lstm_soft, lstm_mean,
  # softmax_regression
  model.name = 'hm_gumbel_adaptive'
  model.cell = ''  # hm_lstm, lstm, none; '' is what model.name says
  # soft, reinforce, gumbel, gumbel_adaptive, none; '' is what model.name says
  model.attention = ''
  model.initial_state = ''  # zeros, mean_features; '' is what model.name says
  model.scorer = 'location'  # location (paper, eq. 12), content
  model.position_code = 'none'  # none, onehot, sincos
  model.scorer_size = 128  # width of the content scorer
  model.hidden_size = 512  # H of every layer
  model.num_layers = 3  # L
  model.head = 'concat'  # concat (paper), gated_embedding (Chung)
  # none (paper); layer: centre and scale the feature of each location;
  # standard: each channel, by its mean and deviation over the training clips
  model.feature_norm = 'none'
  # Whether the cell reads the mean over locations beside what is attended to
  # (paper: False).
  model.global_context = False
  model.dropout = 0.0  # on the hidden states that the head reads
  model.input_dropout = 0.0  # on the attended feature
  model.attention_temperature = 0.3  # tau of gumbel attention
  model.boundary = 'gumbel'  # gumbel (paper), straight_through, soft, fixed
  # fixed: layer l ends a segment every boundary_period ** l frames; 1: always
  model.boundary_period = 1
  model.boundary_temperature = 0.3  # tau of the boundaries
  model.boundary_rate = 0.15  # initial rate by the bias; not in the paper
  model.top_detector = True  # True (paper), False (Chung)
  model.copied_boundary = 'recompute'  # recompute (paper), zero (Chung)
  model.layer_norm = False
  model.output_activation = 'tanh'  # tanh (Chung), identity (printed eq. 3)
  # Factors of matrix products: float32, or bfloat16, which is faster on
  # accelerators. Parameters, states, boundaries and sums stay float32.
  model.dtype = 'float32'
  # Gradients through time: deferred, or autodiff, JAX's own: the same up to the
  # order of summation, and slower, or pallas: deferred by kernels of our own on
  # one NVIDIA GPU, never measured; see hman_jax/pallas_hm_lstm.py.
  model.backward = 'deferred'
  # Whether to keep states at about sqrt(T) frames only and compute the others
  # again for the gradient: less memory, more time.
  model.remat = False

  loss = config.loss = ml_collections.ConfigDict()
  loss.label_smoothing = 0.0
  loss.reinforce_weight = 1.0  # lambda_r
  loss.entropy_weight = 0.002  # lambda_e, of reinforce
  loss.baseline_decay = 0.9  # of the moving reward baseline
  loss.rewards_to_go = False  # reward of a pick: later steps only
  loss.num_samples = 1  # draws of the attention that a step averages over
  loss.doubly_stochastic = 0.0  # weight of Sharma's attention penalty
  # Weight and target of the boundary rates' penalty, which keeps layers alive.
  # Not in the paper (0.0), where they die: see the README.
  loss.boundary_rate_weight = 3.0
  loss.boundary_rate_target = 0.15

  train = config.train = ml_collections.ConfigDict()
  train.batch_size = 64
  train.num_steps = 15_000  # not in the paper
  train.optimizer = 'adam'  # adam (paper), adamw
  train.learning_rate = 1e-4
  train.schedule = 'step'  # step (paper), cosine, constant
  train.drop_step = 10_000  # step: where the rate drops
  train.drop_factor = 0.1  # step: by what
  train.warmup_steps = 0  # linear, before any schedule; < num_steps
  train.weight_decay = 1e-4  # adamw only
  train.clip_norm = 1.0  # global norm of the gradient
  # The boundaries' noise goes from 1 (paper, always) to this over the first
  # part of the training, so that training ends as evaluation is: deterministic.
  train.boundary_noise_end = 0.0
  train.boundary_noise_part = 0.8
  # A loss or gradient that is not finite: stop (never saved), or skip the step,
  # up to max_skipped times in a run.
  train.on_nonfinite = 'stop'
  train.max_skipped = 10
  # Parts of a batch that are computed in turn: the same as the batch at once,
  # but for the boundary rates' penalty, which is not linear in the rates. It is
  # the mean of the parts' own, so that each part is pulled to the target.
  train.accumulate_steps = 1
  # Devices that share one copy of the large matrices (experiments/sharding.py)
  train.model_devices = 1
  # On a CPU: two thirds of the compilation, for steps that are 2 to 10 % slower
  # if the model is large. For runs of minutes.
  train.quick_compile = False
  train.ema_decay = 0.0  # of the parameters that are evaluated; 0: none
  train.eval_every = 500  # steps between evaluations on validation
  train.log_every = 20  # steps between records in metrics.jsonl
  train.log_seconds = 10.0  # between lines on the screen

  evaluation = config.eval = ml_collections.ConfigDict()
  evaluation.batch_size = 64
  evaluation.boundary_mode = 'deterministic'  # deterministic, sample
  evaluation.num_samples = 8  # sample: draws averaged; otherwise not read
  evaluation.boundary_tolerance = 2  # frames, of boundary F1

  checkpoint = config.checkpoint = ml_collections.ConfigDict()
  checkpoint.every = 500  # steps
  checkpoint.keep = 3
  return config
