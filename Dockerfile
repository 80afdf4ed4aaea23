# vgpo with CUDA and vLLM. PyTorch's wheels bring the CUDA libraries; the host brings the driver and the NVIDIA container
# toolkit. NOT BUILT BY US: no GPU and no image builder were available. What was checked is that a resolver finds one
# set of versions for the install line: torch 2.13.0, transformers 5.17.0, trl 1.16.0, as in the row `vllm` of
# docs/tested_versions.md.
#
#   docker build --tag vgpo .
#   docker run --rm --gpus all --ipc host --volume "$PWD:/work" vgpo doctor qwen2_5_vl_3b_lora_1gpu
#   docker run --rm --gpus all --ipc host --volume "$PWD:/work" --entrypoint accelerate vgpo \
#       launch --config_file /opt/vgpo/recipes/accelerate/one_gpu.yaml -m vgpo.cli train --config qwen2_5_vl_3b_lora_1gpu

# With a C compiler, which Triton calls when it builds kernels.
FROM python:3.11

WORKDIR /opt/vgpo
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY recipes recipes
COPY studies studies
# The newest vLLM that TRL 1.16 supports.
RUN pip install --no-cache-dir "vllm==0.31.0" "trl>=1.16,<1.17" ".[eval,math-verify]"

WORKDIR /work
ENTRYPOINT ["vgpo"]
