"""What configs, processors and data columns call images and videos: one table of names."""

# Fields of a model's config with the placeholder token that vision features replace. Older families store `*_index`.
VISUAL_TOKEN_FIELDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
# Tokens that open an image. A generated one makes position ids look for an image that is not there.
OPENING_TOKEN_FIELDS = ("vision_start_token_id", "boi_token_id", "boi_token_index")

# Columns of a data set that hold images.
IMAGE_COLUMNS = ("images", "image")

# Fields of a processor's output that mark the tokens of images; computed from the ids where rows are padded or packed.
TOKEN_TYPE_FIELDS = ("token_type_ids", "mm_token_type_ids")
# Fields that TRL's trainer makes of the images in a batch, beside those that mark tokens.
TRAINER_FIELDS = (
    "pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes", "image_sizes", "image_position_ids",
    "num_images", "num_tiles",
)  # fmt: skip
