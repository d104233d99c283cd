#!/bin/sh
# Fill a folder with the wheels that `make gpu-check` needs on a machine with CUDA, Python 3.12 (PYTHON_THERE), PyTorch and no
# package index.
#
#     sh scripts/wheels.sh FOLDER [HAVE]
#
# At most 60 MiB, since the folder must be carried there. HAVE is what `pip list --format=freeze` says there: what it names is not
# brought, and what then fits is. Without it, only PyTorch and what that brings are taken to be there.
set -eu

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: sh scripts/wheels.sh FOLDER [HAVE]" >&2
    exit 2
fi
out=$1 have=${2:-}
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
there=${PYTHON_THERE:-3.12}
limit=$((60 * 1024 * 1024))

# What the jobs import, and pytest for the tests. PyTorch brings filelock, fsspec, jinja2, setuptools, typing-extensions and triton.
needed="numpy pyarrow pydantic pydantic-core annotated-types typing-inspection omegaconf antlr4-python3-runtime PyYAML safetensors
universal-pathlib pathlib-abc defusedxml tqdm psutil webdataset braceexpand einops hjson msgpack ninja packaging py-cpuinfo
pytest pytest-timeout pluggy iniconfig Pygments"
# What more may come if there is room, as groups that are of use only whole (one a line), and what is not checked without them.
more="scipy+pandas+python-dateutil+six:scoring_on_the_device"

wanted() {
    # Names are compared as pip compares them.
    [ -z "$have" ] || ! sed 's/==.*//' "$have" | tr 'A-Z_.' 'a-z--' | grep -qx "$(echo "$1" | tr 'A-Z_.' 'a-z--')"
}

get() {
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$there" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_24_x86_64 \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -c "$root/constraints.txt" -d "$1" "$2"
}

bytes() {
    cat "$1"/*.whl 2>/dev/null | wc -c
}

mkdir -p "$out"
if [ -n "$(ls -A "$out")" ]; then
    echo "$out: is not empty; give another folder" >&2
    exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for name in $needed; do
    ! wanted "$name" || get "$out" "$name"
done
# DeepSpeed has no wheels; without a compiler's work its own is the same for every Python and PyTorch.
if wanted deepspeed; then
    DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps -c "$root/constraints.txt" -w "$out" deepspeed
fi
# The Triton kernels of Mamba-2 alone: no compiler runs, and the extension of Mamba-1 is left out. The build looks at PyTorch.
if wanted mamba-ssm; then
    version=$(sed -n 's/^ *mamba-ssm==//p' "$root/setup.cfg")
    MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE "$python" -m pip wheel --quiet --no-deps --no-build-isolation -w "$out" \
        "mamba-ssm==$version" 2>"$work/mamba" ||
        echo "left out: mamba-ssm (building it needs PyTorch and setuptools beside $python; the fused kernels are not checked)"
fi
# Of Arrow, what reads and writes Parquet: without Flight, clouds, ORC, headers and tests.
for wheel in "$out"/pyarrow-*.whl; do
    [ ! -e "$wheel" ] || "$python" "$root/scripts/slim_pyarrow.py" "$wheel"
done

for line in $more; do
    group="$work/group" use=$(echo "${line#*:}" | tr _ ' ')
    rm -rf "$group" && mkdir "$group"
    for name in $(echo "${line%%:*}" | tr + ' '); do
        ! wanted "$name" || get "$group" "$name"
    done
    if [ $(($(bytes "$out") + $(bytes "$group"))) -le $limit ]; then
        cp "$group"/*.whl "$out"/ 2>/dev/null || true
    else
        echo "left out: ${line%%:*} ($(($(bytes "$group") / 1048576)) MiB), so not checked: $use"
    fi
done
echo "left out: mlflow and scikit-learn; runs keep their figures in their folders, nothing is registered, no monitor is measured"

size=$(bytes "$out")
echo "$out: $(find "$out" -name "*.whl" | wc -l) wheels for Python $there, $((size / 1048576)) MiB"
if [ "$size" -gt $limit ]; then
    echo "$out: more than 60 MiB; give the list of what is there already as HAVE" >&2
    exit 1
fi
