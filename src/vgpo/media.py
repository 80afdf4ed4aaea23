"""Names of images and videos in configs, processors and data columns."""

# Fields of a model's config with the placeholder token that vision features replace. Older families store `*_index`.
VISUAL_TOKEN_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
# Further media tokens in a config: tokens that open an image or audio, audio placeholders, row separators. A field
# names one if its name ends as in the first line, contains a word of the second, and none of the third. Tokens that
# close a medium have no effect and remain allowed.
TOKEN_ID_ENDINGS = ("_token_id", "_token_ids", "_token_index")
MEDIA_WORDS = ("image", "img", "vision", "visual", "video", "audio", "speech", "boi", "boa", "bov", "patch", "media")
CLOSING_WORDS = ("end", "eoi", "eoa", "eov")

# Columns of a dataset that hold images.
IMAGE_COLUMNS = ("images", "image")

# Per-token fields of a processor, in addition to ids and mask, and their value at response tokens. The value at an
# image token that a tool adds to a response is 1.
TOKEN_TYPES = {"token_type_ids": 0, "mm_token_type_ids": 0, "moe_mm_token_type_ids": 0}
# Families with another value: for PaliGemma, 0 marks a prefix with bidirectional attention.
RESPONSE_TYPES = {"paligemma": {"token_type_ids": 1}}
# Per-token fields that a policy's forward pass does not take: targets for supervised training.
DROPPED_TOKEN_FIELDS = ("labels", "special_tokens_mask", "offset_mapping")
TOKEN_TYPE_FIELDS = tuple(TOKEN_TYPES)
# Fields that TRL's trainer creates for the images in a batch, in addition to those that mark tokens.
TRAINER_FIELDS = (
    "pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids",
    "num_images", "num_tiles",
)  # fmt: skip
# Fields with the patches of all images in one row, (1, C, P, N * P), by the field with the number of patches per
# image. Several prompts are concatenated along the last dimension.
PACKED_BY = {"target_sizes": "pixel_values"}
# Fields of indices into the patches of all images, by the field that has those patches, (crops, patches of a crop, D).
INDICES_OF = {"image_token_pooling": "pixel_values"}
