"""A vision-language model as a policy: prompts, responses and their scores, independent of any trainer."""
