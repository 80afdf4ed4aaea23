"""What configs, processors and data columns call images and videos: one table of names."""

# Fields of a model's config with the placeholder token that vision features replace. Older families store `*_index`.
VISUAL_TOKEN_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
# A config names further tokens of media: marks that open an image or a sound, placeholders of audio, row separators.
# A field names one if its name ends as in the first line, holds a word of the second, and none of the third. Marks
# that close a medium stand for nothing, and stay allowed.
TOKEN_ID_ENDINGS = ("_token_id", "_token_ids", "_token_index")
MEDIA_WORDS = ("image", "img", "vision", "visual", "video", "audio", "speech", "boi", "boa", "bov", "patch", "media")
CLOSING_WORDS = ("end", "eoi", "eoa", "eov")

# Columns of a dataset that hold images.
IMAGE_COLUMNS = ("images", "image")

# What a processor writes for each token of a prompt, beside ids and mask, and its value at a token of the response.
# The value at an image token that a tool puts into a response is 1.
TOKEN_TYPES = {"token_type_ids": 0, "mm_token_type_ids": 0, "moe_mm_token_type_ids": 0}
# Families in which that value means something else: 0 is a prefix that PaliGemma reads in both directions.
RESPONSE_TYPES = {"paligemma": {"token_type_ids": 1}}
# Per-token fields that no forward pass of a policy takes: targets that a processor derives for supervised training.
DROPPED_TOKEN_FIELDS = ("labels", "special_tokens_mask", "offset_mapping")
TOKEN_TYPE_FIELDS = tuple(TOKEN_TYPES)
# Fields that TRL's trainer makes of the images in a batch, beside those that mark tokens.
TRAINER_FIELDS = (
    "pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids",
    "num_images", "num_tiles",
)  # fmt: skip
# Fields with the patches of all images in one row, (1, C, P, N * P), by the field that says how many patches each
# image has. Those of several prompts follow one another in the last dimension.
PACKED_BY = {"target_sizes": "pixel_values"}
# Fields of indices into the patches of all images, by the field that has those patches, (crops, patches of a crop, D).
INDICES_OF = {"image_token_pooling": "pixel_values"}
