"""The same rollouts behind prompts with less to look at, for every family, and what the trainer makes of them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.families.build import FAMILIES, draw_weights, encode_prompts, picture
from tests.shared_prompt.test_families import naive_log_probs
from tests.trl.tiny import GROUP, mixed_rows, rows_with_pictures
from vgpo.focus import banned_token_ids, named_visual_token_ids
from vgpo.trl import VGPOTrainer
from vgpo.trl.corruption import BlackPatches, WithoutPictures, prompt_columns, viewed
from vgpo.trl.forward import Rows, score_rows
from vgpo.trl.prompts import EncodedPrompt, encoded_prompt

CPU = torch.device("cpu")
