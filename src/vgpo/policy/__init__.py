"""A vision-language model as a policy: its prompts, its responses, their scores. No trainer is known here."""
