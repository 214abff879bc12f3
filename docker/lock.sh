#!/bin/sh
# Write the hashed lists of packages that the image is built from. Needs uv and network access.
# torch and what it alone brings are left out: they come from an index chosen at build time.
set -eu
cd "$(dirname "$0")/.."
options="--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet"
# shellcheck disable=SC2086
uv pip compile pyproject.toml $options \
  --extra hf --extra mil --extra dicom --extra zarr --extra export --extra s3 --extra report |
  awk '/^[a-z0-9]/ { keep = $0 !~ /^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)==/ } keep' \
  > docker/requirements.txt
# shellcheck disable=SC2086
printf 'uv\nhatchling\npip\n' | uv pip compile - $options --output-file docker/build-requirements.txt
